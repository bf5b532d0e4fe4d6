import pytest
import torch
from jaxtyping import TypeCheckError

from polyspace.models.ema import Ema
from polyspace.models.layers import Attention, Block, attend, sincos_code


def test_equal_coordinates_have_equal_codes_and_fractions_lie_between():
    grid = sincos_code(torch.tensor([[0.0, 1, 2], [0, 2, 2]]), 16)
    middle = sincos_code(torch.tensor([[0.0, 1.5, 2]]), 16)
    assert torch.equal(grid[0], sincos_code(torch.tensor([[0.0, 1, 2]]), 16)[0])
    assert (middle[0] - grid[0]).norm() < (grid[1] - grid[0]).norm()
    with pytest.raises(ValueError, match="multiple of 8"):
        sincos_code(torch.zeros(1, 3), 12)


@pytest.mark.parametrize("dim", [8, 24, 40, 96])
def test_the_code_is_as_wide_as_asked_for(dim):
    assert sincos_code(torch.rand(2, 3), dim).shape == (2, dim)


def test_first_angle_of_the_code_is_the_coordinate_itself():
    code = sincos_code(torch.tensor([[0.7, 1.1, -0.4]]), 32)[0]
    assert code[0] == pytest.approx(torch.tensor(0.7).sin().item(), abs=1e-6)
    assert code[8] == pytest.approx(torch.tensor(1.1).sin().item(), abs=1e-6)
    assert code[20] == pytest.approx(torch.tensor(-0.4).sin().item(), abs=1e-6)


def test_attention_is_the_textbook_sum():
    q, k, v = torch.randn(3, 2, 5, 6, dtype=torch.float64)
    out = attend(q, k, v, heads=2)
    for b, h, i in ((0, 0, 1), (1, 1, 4)):
        part = slice(3 * h, 3 * h + 3)
        weights = [(q[b, i, part] @ k[b, j, part] / 3**0.5).exp() for j in range(5)]
        expected = sum(w * v[b, j, part] for j, w in enumerate(weights)) / sum(weights)
        assert torch.allclose(out[b, i, part], expected)


def test_padding_is_never_attended_to_and_a_row_without_keys_is_finite():
    block = Block(8, 2).double()
    x, pad = torch.randn(2, 4, 8, dtype=torch.float64), torch.tensor([[False, False, True, True], [True] * 4])
    y = block(x, pad)
    changed = x.clone()
    changed[0, 2:] = 1e3
    assert torch.equal(block(changed, pad)[0, :2], y[0, :2])
    assert torch.allclose(block(x[:1, :2])[0], y[0, :2])
    assert y.isfinite().all()


def test_a_key_counted_twice_is_a_key_with_bias_log_two():
    attention = Attention(8, 2).double()
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    twice = attention(torch.cat([x, x[:, 2:]], 1))[:, :3]
    bias = torch.tensor([[0.0, 0, 2]], dtype=torch.float64).clamp_min(1).log()
    assert torch.allclose(attention(x, None, bias), twice)


def test_heads_must_divide_the_width():
    with pytest.raises((ValueError, TypeCheckError), match="heads"):
        Attention(10, 4)


def test_the_average_moves_by_its_share_in_fp32_and_stays_frozen():
    online = torch.nn.Linear(3, 2)
    target = Ema(online)
    before = target.model.weight.clone()
    with torch.no_grad():
        online.weight.add_(1.0)
    target.update(online, 0.75)
    assert torch.allclose(target.model.weight, before + 0.25)
    assert not any(p.requires_grad for p in target.parameters())
    assert not target.train().model.training


def test_a_bf16_model_has_an_fp32_average_that_moves_by_steps_below_bf16():
    online = torch.nn.Linear(1, 1, bias=False).bfloat16()
    torch.nn.init.constant_(online.weight, 1.0)
    target = Ema(online)
    torch.nn.init.constant_(online.weight, 2.0)
    for _ in range(10):
        target.update(online, 0.99925)
    assert target.model.weight.item() == pytest.approx(2 - 0.99925**10, abs=1e-6)


def test_a_decay_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"1\.5"):
        Ema(torch.nn.Linear(1, 1)).update(torch.nn.Linear(1, 1), 1.5)
