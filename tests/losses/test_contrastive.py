"""NT-Xent and InfoNCE against their closed forms and loops."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from typecheck import unchecked

from polyspace.losses import info_nce_loss, nt_xent_loss


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_parallel_inputs_give_ln_2n_minus_1(real_data, temperature):
    cases = json.loads((real_data / "numeric" / "ntxent_lightly_identities.json").read_text())
    for n, expected in cases.items():
        x = torch.ones(int(n), 5)
        assert nt_xent_loss(x, 2 * x, temperature).item() == pytest.approx(expected, abs=1e-5)


def test_it_equals_the_sum_written_as_loops():
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    z = F.normalize(torch.cat([a, b]), dim=1)
    total = 0.0
    for i in range(6):
        j = (i + 3) % 6
        scores = [math.exp((z[i] @ z[k]).item() / 0.2) for k in range(6) if k != i]
        total -= (z[i] @ z[j]).item() / 0.2 - math.log(sum(scores))
    assert nt_xent_loss(a, b, 0.2).item() == pytest.approx(total / 6, abs=1e-12)


def test_half_precision_input_is_summed_in_float32_and_gradients_flow():
    a = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    loss = nt_xent_loss(a, torch.randn(4, 8, dtype=torch.bfloat16))
    loss.backward()
    assert loss.dtype == torch.float32 and a.grad.abs().sum() > 0


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        unchecked(nt_xent_loss)(torch.randn(3, 4), torch.randn(2, 4))


def test_autocast_does_not_narrow_the_logits():
    a, b = torch.randn(2, 16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent_loss(a, b, 0.05)
    assert torch.equal(inside, nt_xent_loss(a, b, 0.05))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_of_parallel_inputs_is_ln_n(temperature):
    x = torch.ones(6, 5)
    assert info_nce_loss(x, 3 * x, temperature).item() == pytest.approx(math.log(6), abs=1e-5)


def test_info_nce_compares_across_sides_only_and_both_ways():
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    u, v = F.normalize(a, dim=1), F.normalize(b, dim=1)
    total = 0.0
    for i in range(4):
        rows = [math.exp((u[i] @ v[k]).item() / 0.3) for k in range(4)]
        columns = [math.exp((u[k] @ v[i]).item() / 0.3) for k in range(4)]
        total -= math.log(rows[i] / sum(rows)) + math.log(columns[i] / sum(columns))
    assert info_nce_loss(a, b, 0.3).item() == pytest.approx(total / 8, abs=1e-12)


def test_info_nce_refuses_different_shapes():
    with pytest.raises(ValueError, match="one shape"):
        unchecked(info_nce_loss)(torch.randn(3, 4), torch.randn(2, 4))


def test_clips_with_one_caption_are_no_negatives_of_each_other():
    a, b, same = torch.randn(4, 6), torch.randn(4, 6), torch.tensor([7, 1, 7, 2])
    z, number, total = F.normalize(torch.cat([a, b]), dim=1), [7, 1, 7, 2] * 2, 0.0
    for i in range(8):
        j = (i + 4) % 8
        others = [k for k in range(8) if k == j or number[k] != number[i]]
        total += (torch.logsumexp(z[i] @ z[others].T / 0.2, 0) - z[i] @ z[j] / 0.2).item()
    assert nt_xent_loss(a, b, 0.2, same).item() == pytest.approx(total / 8, abs=1e-5)
    assert nt_xent_loss(a, b, 0.2, torch.arange(4)) == nt_xent_loss(a, b, 0.2)


def test_the_temperature_may_be_learned():
    t = torch.tensor(0.1, requires_grad=True)
    nt_xent_loss(torch.randn(3, 4), torch.randn(3, 4), t).backward()
    assert t.grad is not None and t.grad != 0
