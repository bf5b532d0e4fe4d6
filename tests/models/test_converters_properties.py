"""What holds of converters in any widths: planted maps come back, closed forms equal slow ones, files hold the bits."""

import math

import numpy as np
import pytest
import torch
from drawn import normal, permutation, rotation, seeds
from hypothesis import given
from hypothesis import strategies as st

from polyspace.models.spaces.converters import (
    ConverterBank,
    LinearConverter,
    ResidualMLP,
    load_converters,
    save_converters,
)
from polyspace.utils.moments import Moments
from polyspace.utils.procrustes import fit_procrustes
from polyspace.utils.ridge import fit_ridge
from polyspace.utils.standardise import fit_standardiser, hadamard

widths = st.integers(1, 9)


@given(widths, widths, seeds, st.floats(0.01, 100), st.floats(-50, 50))
def test_a_planted_rotation_scale_and_shift_come_back_exactly(d, e, seed, scale, shift):
    planted = rotation(seed, max(d, e))[:d, :e]  # orthonormal rows (d ≤ e) or columns (d ≥ e)
    x = normal(seed + 1, 6 * max(d, e) + 4, d, dtype=torch.float64)
    if d > e:  # what the map throws away must not be needed: rows within the planted columns' span, and a little beside
        x = x @ planted @ planted.T + 1e-3 * x
    y = scale * (x - 3) @ planted + shift
    found = fit_procrustes(x, y)
    error = (found(x) - y).norm() / (y - y.mean(0)).norm()
    assert error < (1e-9 if d <= e else 3e-2)
    if d <= e:
        torch.testing.assert_close(found.rotation, planted, atol=1e-7, rtol=0)
        assert found.scale.item() == pytest.approx(scale)


@given(widths, widths, seeds, st.integers(1, 20), st.booleans(), st.booleans())
def test_the_rotation_is_orthogonal_for_any_data(d, e, seed, n, center, scale):
    x, y = normal(seed, n, d), normal(seed + 1, n, e)
    found = fit_procrustes(x, y, center=center, scale=scale)
    r = found.rotation
    gram = r @ r.T if d <= e else r.T @ r
    torch.testing.assert_close(gram, torch.eye(min(d, e), dtype=gram.dtype), atol=1e-9, rtol=0)
    assert scale or found.scale == 1
    assert torch.isfinite(found.scale) and torch.isfinite(found(x)).all()


@given(widths, widths, seeds)
def test_no_other_rotation_fits_better(d, e, seed):
    x, y = normal(seed, 30, d, dtype=torch.float64), normal(seed + 1, 30, e, dtype=torch.float64)
    found = fit_procrustes(x, y)
    best = (found(x) - y).square().sum()
    for other in range(3):
        turned = rotation(seed + other, max(d, e))[:d, :e]
        xc, yc = x - x.mean(0), y - y.mean(0)
        moved = xc @ turned
        s = (moved * yc).sum() / moved.square().sum()
        assert best <= (s * moved - yc).square().sum() * (1 + 1e-4)


@given(widths, widths, st.integers(2, 40), seeds, st.sampled_from([1e-6, 1e-3, 0.1, 10.0]))
def test_ridge_is_the_least_squares_of_the_rows_and_the_penalty(d, e, n, seed, penalty):
    x, y = normal(seed, n, d, dtype=torch.float64) + 2, normal(seed + 1, n, e, dtype=torch.float64) - 1
    found = fit_ridge(Moments().update(x, y), penalties=(penalty,))
    xc, yc = (v - v.mean(0) for v in (x, y))
    unit = torch.linalg.eigvalsh(xc.T @ xc / n).mean()
    stacked = torch.cat([xc, math.sqrt(n * penalty) * unit.sqrt() * torch.eye(d, dtype=x.dtype)])
    weight = np.linalg.lstsq(stacked.numpy(), torch.cat([yc, yc.new_zeros(d, e)]).numpy(), rcond=None)[0]
    torch.testing.assert_close(found.weight, torch.from_numpy(weight), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found(x.mean(0, keepdim=True)), y.mean(0, keepdim=True), rtol=1e-7, atol=1e-7)


@given(widths, widths, st.integers(4, 40), seeds, st.integers(1, 6), st.floats(-1e3, 1e3))
def test_moments_do_not_depend_on_how_the_rows_were_split_and_in_which_order(d, e, n, seed, parts, far):
    x, y = normal(seed, n, d, dtype=torch.float64) + far, normal(seed + 1, n, e, dtype=torch.float64) - far
    whole, merged = Moments().update(x, y), Moments()
    pieces = [Moments().update(x[rows], y[rows]) for rows in permutation(seed, n).tensor_split(parts)]
    for i in permutation(seed + 2, parts).tolist():
        merged.merge(Moments.from_state(pieces[i].state()))
    assert merged.n == n
    for name in ("mean_x", "mean_y", "cov_xx", "cov_xy", "cov_yy"):
        a, b = getattr(whole, name)(), getattr(merged, name)()
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(merged.cov_xy(), (x - x.mean(0)).T @ (y - y.mean(0)) / n, rtol=1e-7, atol=1e-7)
    assert merged.linear_cka() == pytest.approx(whole.linear_cka(), abs=1e-5)


@given(
    st.integers(1, 24), seeds, st.sampled_from(["none", "per_dim", "phi_s"]), st.floats(1e-3, 1e3), st.integers(2, 40)
)
def test_a_standardiser_inverts_and_gives_even_variances(d, seed, kind, size, n):
    y = size * normal(seed, n, d, dtype=torch.float64) @ torch.diag(torch.linspace(0.1, 3, d, dtype=torch.float64)) + 7
    mean, cov = y.mean(0), torch.cov(y.T, correction=0).reshape(d, d)
    unit = fit_standardiser(mean, cov, kind)
    torch.testing.assert_close(unit.inverse(unit(y)), y, rtol=1e-8, atol=1e-8 * size)
    torch.testing.assert_close(unit.into @ unit.back, torch.eye(d, dtype=y.dtype), rtol=0, atol=1e-8)
    if kind == "phi_s" or (kind == "per_dim" and n > 2):
        torch.testing.assert_close(unit(y).var(0, correction=0), torch.ones(d, dtype=y.dtype), rtol=1e-5, atol=1e-5)


@given(st.integers(1, 60))
def test_a_hadamard_matrix_is_one_where_there_is_any(order):
    h = hadamard(order)
    assert h is None or (
        torch.equal(h @ h.T, order * torch.eye(order).to(h)) and torch.equal(h.abs(), torch.ones_like(h))
    )


def mlp(seed: int, d: int, e: int, hidden: int) -> ResidualMLP:
    torch.manual_seed(seed)
    y = normal(seed, 20, e, dtype=torch.float64)
    unit = fit_standardiser(y.mean(0), torch.cov(y.T, correction=0).reshape(e, e), "phi_s")
    linear = LinearConverter(normal(seed, d, e), normal(seed + 1, e))
    return ResidualMLP(linear, hidden, normal(seed, d), normal(seed + 2, d).abs(), unit)


@given(widths, widths, st.integers(1, 12), seeds, st.floats(1e-3, 1e4))
def test_an_untrained_residual_network_is_its_linear_map_to_the_bit(d, e, hidden, seed, size):
    converter, x = mlp(seed, d, e, hidden), size * normal(seed + 3, 5, d)
    assert torch.equal(converter(x), converter.linear(x))


@given(widths, st.lists(widths, min_size=1, max_size=3), seeds, st.booleans())
def test_a_saved_bank_comes_back_to_the_bit_and_in_order(d, outs, seed, network):
    from pathlib import Path
    from tempfile import TemporaryDirectory

    names = [f"space{9 - i}" for i in range(len(outs))]
    bank = ConverterBank({
        name: mlp(seed + i, d, e, 4) if network else LinearConverter(normal(seed, d, e), normal(seed, e))
        for i, (name, e) in enumerate(zip(names, outs, strict=True))
    })  # fmt: skip
    if network:
        for parameter in bank.parameters():
            torch.nn.init.normal_(parameter)
    about = {"student": "s", "spaces": {}, "kind": "ridge", "held_out": {}, "seed": seed}
    with TemporaryDirectory() as folder:
        save_converters(Path(folder) / "c.pt", bank, about)
        loaded, about = load_converters(Path(folder) / "c.pt")
    x = normal(seed, 4, d)
    assert about["seed"] == seed and list(loaded.dims.items()) == list(zip(names, outs, strict=True))
    before, after = bank(x), loaded(x)
    assert all(torch.equal(before[name], after[name]) for name in names)
