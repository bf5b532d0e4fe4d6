"""Streamed statistics equal batch ones, and the maps made from them are right."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

from polyspace.utils.cka import linear_cka
from polyspace.utils.moments import Moments
from polyspace.utils.procrustes import fit_procrustes, procrustes_from_moments
from polyspace.utils.ridge import fit_ridge, r2_from_moments

D, E = 7, 5


def pairs(n: int, offset: float = 0.0, noise: float = 0.3):
    x = torch.randn(n, D, dtype=torch.float64) + offset
    return x, x @ torch.randn(D, E, dtype=torch.float64) + noise * torch.randn(n, E, dtype=torch.float64) - offset


def debiased_cka_by_loops(x, y):
    """The U-statistic of Song et al. (2012), written with n×n kernel matrices."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    k, m = k - k.diag().diag(), m - m.diag().diag()
    one = torch.ones(n, dtype=x.dtype)

    def hsic(a, b):
        total = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
        return ((a * b).sum() + total - 2 / (n - 2) * (one @ a @ b @ one)) / (n * (n - 3))

    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


@pytest.mark.parametrize("cuts", [[60], [1, 60], [4, 9, 30, 60], list(range(1, 61))])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_any_chunking_and_any_merge_order_give_the_batch_result(cuts, offset):
    x, y = pairs(60, offset)
    whole = Moments().update(x, y)
    parts = [Moments().update(x[a:b], y[a:b]) for a, b in zip([0, *cuts], cuts, strict=False)]
    merged = Moments()
    for i in torch.randperm(len(parts)).tolist():
        merged.merge(parts[i])
    streamed = Moments()
    for a, b in zip([0, *cuts], cuts, strict=False):
        streamed.update(x[a:b], y[a:b])
    for other in (merged, streamed):
        assert other.n == 60
        torch.testing.assert_close(other.cov_xy(), whole.cov_xy(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(other.cov_xx(), whole.cov_xx(), rtol=1e-10, atol=1e-10)
        for debiased in (True, False):
            assert other.linear_cka(debiased) == pytest.approx(whole.linear_cka(debiased), abs=1e-10)


def test_covariances_match_numpy():
    x, y = pairs(40, 20.0)
    moments = Moments().update(x.float(), y.float())
    expected = np.cov(x.float().double().numpy().T, y.float().double().numpy().T, bias=True)
    np.testing.assert_allclose(moments.cov_xx(), expected[:D, :D], atol=1e-9)
    np.testing.assert_allclose(moments.cov_xy(), expected[:D, D:], atol=1e-9)
    np.testing.assert_allclose(moments.cov_yy(), expected[D:, D:], atol=1e-9)


def test_debiased_cka_matches_the_kernel_form():
    x, y = pairs(23, 3.0, noise=4.0)
    assert Moments().update(x, y).linear_cka() == pytest.approx(debiased_cka_by_loops(x, y).item(), abs=1e-12)


@pytest.mark.parametrize("n", [64, 256])
def test_debiased_cka_of_independent_noise_is_near_zero_where_the_biased_one_is_not(n):
    values = [linear_cka(torch.randn(n, 512), torch.randn(n, 384), debiased=True).item() for _ in range(50)]
    assert abs(sum(values) / len(values)) < 0.02
    assert linear_cka(torch.randn(n, 512), torch.randn(n, 384)) > 0.4


def test_cka_is_one_for_a_rotated_shifted_scaled_space():
    x = torch.randn(50, 6, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    for debiased in (True, False):
        assert linear_cka(x, 3 * x @ q + 5, debiased=debiased) == pytest.approx(1.0, abs=1e-9)


def test_a_constant_side_gives_zero_and_too_few_rows_an_error():
    assert linear_cka(torch.randn(9, 3), torch.ones(9, 2)) == 0
    with pytest.raises(ValueError, match="at least 4 rows"):
        linear_cka(torch.randn(3, 3), torch.randn(3, 2), debiased=True)


def test_published_cka_value_is_reproduced(real_data):
    import json

    arrays = np.load(real_data / "numeric" / "cka_google_demo_XY.npz")
    expected = json.loads((real_data / "numeric" / "cka_google_demo_expected.json").read_text())["linear_cka"]
    x, y = (torch.from_numpy(arrays[k]) for k in arrays.files)
    assert linear_cka(x, y) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("shape", [(4, 4), (3, 6)])
def test_procrustes_finds_an_exact_isometry_with_scale_and_shift(shape):
    d, e = shape
    x = torch.randn(30, d, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(e, d, dtype=torch.float64))[0].T
    y = 2.5 * x @ rotation + torch.randn(e, dtype=torch.float64)
    found = fit_procrustes(x, y)
    torch.testing.assert_close(found(x), y)
    torch.testing.assert_close(found.rotation, rotation)
    assert found.scale == pytest.approx(2.5)


def test_procrustes_agrees_with_scipy_without_centring():
    x, y = pairs(30)
    found = fit_procrustes(x[:, :E], y, center=False)
    rotation, singular = orthogonal_procrustes(x[:, :E].numpy(), y.numpy())
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-10)
    assert found.scale == pytest.approx(singular / (x[:, :E] ** 2).sum().item())
    assert fit_procrustes(x[:, :E], y, scale=False).scale == 1


def test_published_procrustes_examples_are_reproduced(real_data):
    import json

    cases = json.loads((real_data / "numeric" / "procrustes_scipy_exact.json").read_text())
    for case in cases.values():
        a, b = (torch.tensor(case[k], dtype=torch.float64) for k in "AB")
        error = (fit_procrustes(a, b)(a) - b).square().sum() / (b - b.mean(0)).square().sum()
        assert error == pytest.approx(case["disparity"], abs=1e-12)


def test_procrustes_to_fewer_dims_keeps_orthonormal_columns_and_beats_the_naive_form():
    x = torch.randn(400, 20, dtype=torch.float64) * torch.logspace(0, -1.5, 20, dtype=torch.float64)
    y = x @ torch.linalg.qr(torch.randn(20, 8, dtype=torch.float64))[0] + 0.02 * torch.randn(
        400, 8, dtype=torch.float64
    )
    moments = Moments().update(x, y)
    best, naive = procrustes_from_moments(moments), procrustes_from_moments(moments, max_iterations=0)
    torch.testing.assert_close(best.rotation.T @ best.rotation, torch.eye(8, dtype=torch.float64))

    def error(m):
        return ((m(x) - y).square().sum() / (y - y.mean(0)).square().sum()).item()

    assert error(best) < 0.7 * error(naive)


def test_ridge_agrees_with_scikit_learn_and_picks_the_penalty_with_least_held_out_error():
    x, y = pairs(40, 2.0, noise=3.0)
    hx, hy = pairs(40, 2.0, noise=3.0)
    fit, held = Moments().update(x, y), Moments().update(hx, hy)
    unit = torch.linalg.eigvalsh(fit.cov_xx()).mean().item()
    errors = {}
    for p in (1e-3, 1e-1, 1.0, 10.0):
        mine = fit_ridge(fit, penalties=(p,))
        theirs = Ridge(alpha=p * unit * len(x)).fit(x.numpy(), y.numpy())
        np.testing.assert_allclose(mine.weight.T, theirs.coef_, atol=1e-9)
        np.testing.assert_allclose(mine(x), theirs.predict(x.numpy()), atol=1e-9)
        errors[p] = (mine(hx) - hy).square().sum().item()
    assert fit_ridge(fit, held, tuple(errors)).penalty == min(errors, key=errors.get)


def test_r2_from_moments_is_the_r2_of_the_rows():
    x, y = pairs(30, 1.0)
    weight, bias = torch.randn(D, E, dtype=torch.float64), torch.randn(E, dtype=torch.float64)
    error = (x @ weight + bias - y).square().sum()
    moments = Moments().update(x, y)
    assert r2_from_moments(weight, bias, moments) == pytest.approx((1 - error / (y - y.mean(0)).square().sum()).item())
    base = torch.randn(E, dtype=torch.float64)
    assert r2_from_moments(weight, bias, moments, base) == pytest.approx((1 - error / (y - base).square().sum()).item())


def test_mismatched_rows_or_widths_are_refused():
    with pytest.raises((ValueError, TypeCheckError)):
        linear_cka(torch.randn(5, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="do not fit"):
        Moments().update(torch.randn(5, 2), torch.randn(5, 3)).merge(
            Moments().update(torch.randn(5, 3), torch.randn(5, 3))
        )
