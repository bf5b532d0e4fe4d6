import pytest
import torch

from polyspace.losses.vicregl import (
    VICRegLLoss,
    batch_covariance,
    covariance_term,
    match_by_feature,
    match_by_place,
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


def test_matches_are_the_closest_pairs():
    a = torch.tensor([[[0.0, 0, 0], [0, 0, 5], [0, 3, 0]]])
    b = torch.tensor([[[0.0, 3, 1], [0, 0, 0.5]]])
    ia, ib = match_by_place(a, b, 2)
    assert ia.tolist() == [[0, 2]] and ib.tolist() == [[1, 0]]
    ia, ib = match_by_feature(a, b, 9)
    assert dict(zip(ia[0].tolist(), ib[0].tolist(), strict=True)) == {0: 1, 1: 1, 2: 0}


def test_vicregl_with_alpha_one_is_vicreg_of_the_means():
    x, y = torch.randn(5, 4, 3), torch.randn(5, 6, 3)
    px, py = torch.rand(5, 4, 3), torch.rand(5, 6, 3)
    loss = VICRegLLoss(alpha=1.0)
    terms = vicreg_terms(x.mean(1), y.mean(1))
    expected = 25 * terms[0] + 25 * terms[1] + terms[2]
    assert loss(x, y, px, py).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_local_part_is_the_mean_over_both_ways_and_both_matchings():
    """Four cells a clip, all matched: every cell with its nearest in the other view, by place and by feature."""
    x, y = torch.randn(2, 5, 4, 3)
    px, py = torch.rand(2, 5, 4, 3)
    parts = []
    for p, q, a, b in ((px, py, x, y), (x, y, x, y), (py, px, y, x), (y, x, y, x)):
        partner = (p[:, :, None] - q[:, None]).norm(dim=-1).argmin(-1)
        matched = torch.stack([b[i, partner[i]] for i in range(5)])
        terms = vicreg_terms(a.flatten(0, 1), matched.flatten(0, 1))
        parts.append(25 * terms[0] + 25 * terms[1] + terms[2])
    whole = VICRegLLoss(alpha=1.0)(x, y, px, py)
    expected = 0.5 * whole + 0.5 * sum(parts) / 4
    assert VICRegLLoss(alpha=0.5)(x, y, px, py).item() == pytest.approx(expected.item(), rel=1e-5)


def test_equal_maps_have_no_invariance_left():
    x, p = torch.randn(5, 4, 3), torch.rand(5, 4, 3)
    only = VICRegLLoss(variance_weight=0, covariance_weight=0)
    assert only(x, x, p, p).item() == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="alpha"):
        VICRegLLoss(alpha=2.0)
