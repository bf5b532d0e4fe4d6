import pytest
import torch

from polyspace.losses import vicreg_loss
from polyspace.losses.vicreg import (
    batch_covariance,
    covariance_term,
    position_covariance,
    variance_term,
    vicreg_terms,
)


def test_covariance_is_torchs():
    z = torch.randn(7, 3, dtype=torch.float64)
    assert torch.allclose(batch_covariance(z), z.T.cov())


def test_terms_agree_with_a_loop_over_the_papers_sums():
    x, y = torch.randn(2, 9, 4, dtype=torch.float64) * 0.4
    variance = covariance = 0.0
    for z in (x, y):
        c = z - z.mean(0)
        for i in range(4):
            variance += max(0.0, 1 - (c[:, i].square().sum() / 8 + 1e-4).sqrt().item()) / 4
            covariance += sum(((c[:, i] * c[:, j]).sum() / 8).item() ** 2 for j in range(4) if j != i) / 4
    terms = vicreg_terms(x, y)
    assert terms[0].item() == pytest.approx((x - y).square().sum().item() / 36)
    assert terms[1].item() == pytest.approx(variance)
    assert terms[2].item() == pytest.approx(covariance)


def test_collapse_costs_the_whole_variance_term_and_spread_costs_none():
    assert variance_term(batch_covariance(torch.ones(5, 3))).item() == pytest.approx(1 - 0.01, abs=1e-6)
    assert variance_term(batch_covariance(3 * torch.randn(50, 3))).item() == 0


def test_whitened_features_have_no_covariance_term():
    q, _ = torch.linalg.qr(torch.randn(12, 4, dtype=torch.float64) - 0.3)
    q = q - q.mean(0)
    u, _, v = torch.linalg.svd(q, full_matrices=False)
    assert covariance_term(batch_covariance(u @ v)).item() == pytest.approx(0, abs=1e-12)


def test_position_alone_gives_no_variance():
    z = torch.randn(1, 6, 3).expand(5, -1, -1)
    seen = torch.ones(5, 6, dtype=torch.bool)
    assert position_covariance(z, seen).abs().max().item() == pytest.approx(0, abs=1e-6)


def test_position_covariance_pools_what_is_left_after_each_positions_mean():
    z, seen = torch.randn(6, 4, 2, dtype=torch.float64), torch.rand(6, 4) < 0.8
    seen[:, 0], seen[:, 1] = True, False
    seen[0, 1] = True  # seen once: left out
    rows, freedom = [], 0
    for i in range(4):
        if seen[:, i].sum() >= 4:
            part = z[seen[:, i], i]
            rows.append(part - part.mean(0))
            freedom += len(part) - 1
    rows = torch.cat(rows)
    blank = torch.where(seen[..., None], z, float("nan"))
    assert torch.allclose(position_covariance(blank, seen), rows.T @ rows / freedom)


def test_the_loss_weighs_both_views_variance_in_full():
    """Two collapsed equal views cost 2·25·(1 − √1e-4): a mean over the views would halve it."""
    z = torch.zeros(6, 3)
    assert vicreg_loss(z, z).item() == pytest.approx(2 * 25 * 0.99, rel=1e-5)
    x, y = torch.randn(2, 8, 3, dtype=torch.float64)
    invariance, variance, covariance = vicreg_terms(x, y)
    assert vicreg_loss(x, y).item() == pytest.approx((25 * invariance + 25 * variance + covariance).item())
