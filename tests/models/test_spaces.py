"""Converters and the fusion head."""

import pytest
import torch

from polyspace.models.spaces.converters import ConverterBank, fit_converter, load_converters, save_converters
from polyspace.models.spaces.fusion import FusionHead, Standardise, matched_pair
from polyspace.utils.checkpoint_io import save_torch
from polyspace.utils.errors import UserError
from polyspace.utils.flops import num_params
from polyspace.utils.moments import Moments

D, SPACES = 6, {"a": 5, "b": 7}


def bank() -> ConverterBank:
    x = torch.randn(40, D)
    fitted = {
        n: fit_converter("ridge", *(Moments().update(x, torch.randn(40, e)) for _ in "12"))[0]
        for n, e in SPACES.items()
    }
    return ConverterBank(fitted)


def test_ridge_recovers_a_linear_map_and_the_mean_control_ignores_its_input():
    x, w = torch.randn(60, D), torch.randn(D, 4)
    fit, held = Moments().update(x[:40], x[:40] @ w + 1), Moments().update(x[40:], x[40:] @ w + 1)
    torch.testing.assert_close(fit_converter("ridge", fit, held)[0](x), x @ w + 1, atol=1e-3, rtol=1e-3)
    mean = fit_converter("mean", fit, held)[0]
    torch.testing.assert_close(mean(x)[3], (x[:40] @ w + 1).mean(0))
    with pytest.raises(UserError, match="--kind rigde is unknown; did you mean 'ridge'"):
        fit_converter("rigde", fit, held)


def test_a_bank_comes_back_bit_for_bit(tmp_path):
    made = bank()
    save_converters(tmp_path / "c.pt", made, {"student": "s", "spaces": {}, "kind": "ridge", "held_out": {}})
    loaded, about = load_converters(tmp_path / "c.pt")
    x = torch.randn(3, D)
    assert about["student"] == "s" and loaded.dims == SPACES
    assert all(torch.equal(made(x)[k], loaded(x)[k]) for k in SPACES)
    save_torch(tmp_path / "v.pt", {"format": "polyspace.converters", "format_version": 99})
    with pytest.raises(UserError, match="format version 99"):
        load_converters(tmp_path / "v.pt")
    save_torch(tmp_path / "o.pt", {"format": "other"})
    with pytest.raises(UserError, match="not a converters file"):
        load_converters(tmp_path / "o.pt")


def test_at_step_0_the_fused_head_is_exactly_the_student_head():
    fusion, control = matched_pair(D, SPACES, 16, 3)
    x = torch.randn(4, D)
    assert torch.equal(fusion(x, bank()(x)), control(x))
    student_only = fusion.classifier(torch.nn.functional.gelu(fusion.student(fusion.input(x))))
    assert torch.equal(fusion(x, bank()(x)), student_only)


def test_gates_begin_at_zero_and_still_learn():
    fusion, _ = matched_pair(D, SPACES, 16, 3)
    x = torch.randn(4, D)
    fusion(x, bank()(x)).square().sum().backward()
    assert torch.equal(fusion.gates(x), torch.zeros(4, 2))
    assert (fusion.gate.weight.grad.abs().sum(1) > 0).all() and (fusion.gate.bias.grad.abs() > 0).all()
    assert all(fusion.projections[name].weight.abs().sum() > 0 for name in SPACES)


def test_each_clip_has_its_own_gates():
    fusion, _ = matched_pair(D, {"a": 5}, 16, 3)
    torch.nn.init.normal_(fusion.gate.weight)
    x, translated = torch.randn(2, D), {"a": torch.randn(2, 5)}
    gates = fusion.gates(x)
    assert gates.shape == (2, 1) and gates[0] != gates[1]
    hidden = fusion.student(x) + gates * fusion.projections["a"](translated["a"])
    expected = fusion.classifier(torch.nn.functional.gelu(hidden))
    torch.testing.assert_close(fusion(x, translated), expected)


@pytest.mark.parametrize(("hidden", "classes"), [(16, 3), (256, 51)])
def test_the_control_has_the_same_number_of_parameters(hidden, classes):
    fusion, control = matched_pair(D * 20, {k: 16 * v for k, v in SPACES.items()}, hidden, classes)
    unit = D * 20 + hidden + 1
    assert abs(num_params(fusion) - num_params(control)) <= unit / 2 + 1


def test_standardisation_uses_the_given_rows_and_drops_dims_that_never_vary():
    x = torch.randn(50, 3) * torch.tensor([5.0, 0.0, 0.1]) + 2
    z = Standardise(3).fit(x)(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-4, rtol=0)
    assert isinstance(FusionHead(3, {}, 4, 2)(x, {}), torch.Tensor)
