import numpy as np
import pytest
import torch

from polyspace.losses import barlow_twins_loss


def test_it_is_numpys_correlation_matrix_against_the_identity():
    x, y = torch.randn(2, 11, 4, dtype=torch.float64)
    c = np.corrcoef(x.numpy().T, y.numpy().T)[:4, 4:]
    expected = ((1 - np.diag(c)) ** 2).sum() + 0.01 * (c**2).sum() - 0.01 * (np.diag(c) ** 2).sum()
    assert barlow_twins_loss(x, y, 0.01, epsilon=0.0).item() == pytest.approx(expected)


def test_equal_uncorrelated_views_cost_nothing_whatever_their_scale_and_number():
    q = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64) - 0.2)[0]
    q = q - q.mean(0)
    u, _, v = torch.linalg.svd(q, full_matrices=False)
    assert barlow_twins_loss(u @ v, 50 * u @ v + 3, epsilon=0.0).item() == pytest.approx(0, abs=1e-12)


def test_opposite_views_cost_four_a_dimension():
    x = torch.randn(30, 1, dtype=torch.float64)
    assert barlow_twins_loss(x, -x).item() == pytest.approx(4, rel=1e-3)


def test_a_constant_side_gives_a_finite_gradient():
    x = torch.ones(5, 3, requires_grad=True)
    barlow_twins_loss(x, torch.randn(5, 3)).backward()
    assert x.grad.isfinite().all()
