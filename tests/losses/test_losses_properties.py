"""What holds of every loss for any input: signs, perfect values, invariances, finite gradients, masks."""

import math

import pytest
import torch
from drawn import DTYPES, normal, permutation, rotation, seeds
from hypothesis import given
from hypothesis import strategies as st

from polyspace import losses
from polyspace.losses.energy import energy_loss
from polyspace.losses.vicreg import position_covariance

ENERGIES = ("l1", "smooth_l1", "l2", "cosine")
PAIRED = {
    "l2": losses.l2_loss,
    "smooth_l1": losses.smooth_l1_loss,
    "cosine": losses.cosine_loss,
    "info_nce": losses.info_nce_loss,
    "nt_xent": losses.nt_xent_loss,
    "vicreg": losses.vicreg_loss,
    "barlow": losses.barlow_twins_loss,
    "aligned": losses.aligned_energy_loss,
    **{f"energy {kind}": lambda x, y, kind=kind: energy_loss(x, y, kind=kind) for kind in ENERGIES},
}
TURNED = ("l2", "cosine", "info_nce", "nt_xent", "aligned", "energy l2", "energy cosine")
ZERO_AT_EQUAL = ("l2", "smooth_l1", "cosine", *(f"energy {kind}" for kind in ENERGIES))
FILLS = {
    "any": lambda seed, n, d: normal(seed, n, d),
    "zeros": lambda seed, n, d: torch.zeros(n, d),
    "one row repeated": lambda seed, n, d: normal(seed, 1, d).repeat(n, 1),
    "one number": lambda seed, n, d: torch.full((n, d), 3.0),
    "huge": lambda seed, n, d: 1e4 * normal(seed, n, d),
    "tiny": lambda seed, n, d: 1e-30 * normal(seed, n, d),
}
sizes = st.tuples(st.integers(1, 7), st.integers(1, 9))
fills = st.sampled_from(sorted(FILLS))


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@given(sizes, seeds, fills, fills, st.booleans())
def test_value_and_gradient_are_finite_and_the_value_is_not_negative(name, dtype, size, seed, fill_x, fill_y, same):
    x = FILLS[fill_x](seed, *size).to(DTYPES[dtype]).requires_grad_()
    y = x.detach().clone() if same else FILLS[fill_y](seed + 1, *size).to(DTYPES[dtype])
    y.requires_grad_(not name.startswith("energy"))
    loss = PAIRED[name](x, y)
    assert loss.dtype == torch.float32 and loss.ndim == 0
    assert torch.isfinite(loss) and loss >= -1e-6
    loss.backward()
    for side in (x, y):
        assert side.grad is None or (torch.isfinite(side.grad).all() and side.grad.dtype == DTYPES[dtype])


@pytest.mark.parametrize("name", PAIRED)
@given(st.integers(2, 8), st.integers(1, 6), seeds)
def test_the_order_of_the_clips_does_not_matter(name, n, d, seed):
    x, y, order = (
        normal(seed, n, d, dtype=torch.float64),
        normal(seed + 1, n, d, dtype=torch.float64),
        permutation(seed, n),
    )
    torch.testing.assert_close(PAIRED[name](x[order], y[order]), PAIRED[name](x, y))


@pytest.mark.parametrize("name", TURNED)
@given(st.integers(2, 8), st.integers(2, 6), seeds)
def test_turning_both_sides_alike_changes_nothing(name, n, d, seed):
    x, y, turn = normal(seed, n, d, dtype=torch.float64), normal(seed + 1, n, d, dtype=torch.float64), rotation(seed, d)
    torch.testing.assert_close(PAIRED[name](x @ turn, y @ turn), PAIRED[name](x, y))


@pytest.mark.parametrize("name", ZERO_AT_EQUAL)
@given(sizes, seeds)
def test_a_perfect_prediction_costs_nothing(name, size, seed):
    x = normal(seed, *size)
    assert PAIRED[name](x, x.clone()).abs() < 1e-6


@given(st.integers(1, 8), st.integers(1, 6), seeds, st.floats(0.05, 2))
def test_parallel_rows_cost_the_logarithm_of_the_candidates(n, d, seed, temperature):
    row = normal(seed, 1, d).repeat(n, 1)
    if row.norm() < 1e-3:
        return
    assert losses.info_nce_loss(row, 2 * row, temperature).item() == pytest.approx(math.log(n), abs=1e-5)
    assert losses.nt_xent_loss(row, 2 * row, temperature).item() == pytest.approx(math.log(2 * n - 1), abs=1e-5)


@pytest.mark.parametrize("name", ["cosine", "info_nce", "nt_xent", "aligned", "energy cosine"])
@given(st.integers(2, 6), st.integers(1, 6), seeds, st.floats(1e-2, 1e2))
def test_the_length_of_rows_does_not_matter_to_what_compares_directions(name, n, d, seed, length):
    x, y = normal(seed, n, d, dtype=torch.float64), normal(seed + 1, n, d, dtype=torch.float64)
    torch.testing.assert_close(PAIRED[name](length * x, y), PAIRED[name](x, y))


@given(st.integers(3, 9), st.integers(1, 5), seeds, st.floats(-100, 100))
def test_a_shift_of_both_views_does_not_matter_to_what_looks_at_variance(n, d, seed, shift):
    x, y = normal(seed, n, d, dtype=torch.float64), normal(seed + 1, n, d, dtype=torch.float64)
    for loss in (losses.vicreg_loss, losses.barlow_twins_loss):
        torch.testing.assert_close(loss(x + shift, y + shift), loss(x, y), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ENERGIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), seeds, st.sampled_from([float("nan"), float("inf"), 1e30])
)
def test_items_without_weight_never_matter(kind, dtype, b, n, d, seed, junk):
    x, y = (normal(seed + i, b, n, d, dtype=DTYPES[dtype]) for i in (0, 1))
    weight = torch.rand(b, n, generator=torch.Generator().manual_seed(seed)) * (normal(seed + 2, b, n) > 0)
    bad_x, bad_y = (torch.where((weight > 0)[..., None], v, junk).requires_grad_() for v in (x, y))
    x.requires_grad_()
    clean, dirty = energy_loss(x, y, weight, kind), energy_loss(bad_x, bad_y, weight, kind)
    clean.backward()
    dirty.backward()
    assert torch.equal(clean, dirty) and torch.equal(x.grad, bad_x.grad)
    assert not bad_x.grad[weight == 0].any()


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 5), seeds)
def test_invalid_cells_never_matter_to_the_auxiliaries(junk, b, n, m, seed):
    valid = normal(seed, b, n) > 0
    prob = torch.sigmoid(normal(seed + 1, b, n))
    boundary, rows = prob > 0.5, torch.softmax(normal(seed + 2, b, n, m), -1)
    for loss, value in (
        (lambda p: losses.ratio_loss(boundary, p, valid, 3.0), prob),
        (lambda p: losses.boundary_loss(p, valid), prob),
        (lambda a: losses.entropy_loss(a, valid), rows),
    ):
        where = valid if value.ndim == 2 else valid[..., None]
        clean, bad = value.clone().requires_grad_(), torch.where(where, value, junk).requires_grad_()
        first, second = loss(clean), loss(bad)
        first.backward()
        second.backward()
        assert torch.equal(first, second) and first >= 0
        assert torch.equal(clean.grad, bad.grad)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), seeds)
def test_hidden_cells_never_matter_to_the_covariance_of_positions(b, n, d, seed):
    z, visible = normal(seed, b, n, d), normal(seed + 1, b, n) > 0
    junk = torch.where(visible[..., None], z, float("nan"))
    assert torch.equal(position_covariance(z, visible), position_covariance(junk, visible))


@pytest.mark.parametrize("fill", ["any", "zeros", "one number", "huge", "tiny"])
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), seeds)
def test_maps_of_any_size_have_a_finite_gradient_under_vicregl(fill, b, n, m, d, seed):
    x = FILLS[fill](seed, b * n, d).view(b, n, d).requires_grad_()
    y = FILLS[fill](seed + 1, b * m, d).view(b, m, d).requires_grad_()
    loss = losses.VICRegLLoss(num_matches=3)(x, y, normal(seed, b, n, 3), normal(seed + 1, b, m, 3))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all() and torch.isfinite(y.grad).all()


@given(st.integers(1, 5), st.integers(1, 6), seeds)
def test_sure_or_certain_rows_have_a_finite_gradient(n, m, seed):
    rows = torch.zeros(1, n, m)
    rows[0, torch.arange(n), permutation(seed, n * m)[:n] % m] = 1
    prob = torch.round(torch.sigmoid(normal(seed, 1, n)))
    rows.requires_grad_()
    prob.requires_grad_()
    valid = torch.ones(1, n, dtype=torch.bool)
    loss = losses.entropy_loss(rows, valid) + losses.boundary_loss(prob, valid)
    loss.backward()
    assert loss == 0 and torch.isfinite(rows.grad).all() and torch.isfinite(prob.grad).all()
