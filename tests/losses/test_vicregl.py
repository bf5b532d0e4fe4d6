import pytest
import torch

from polyspace.losses.vicreg import vicreg_terms
from polyspace.losses.vicregl import VICRegLLoss, match_by_feature, match_by_place


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


def test_among_cells_that_are_alike_the_first_is_matched():
    chunks = torch.randn(4, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = chunks.repeat_interleave(9, 1), (chunks + 0.01 * chunks.roll(1, 0)).repeat_interleave(9, 1)
    index, partner = match_by_feature(x, y, 20)
    assert torch.equal(partner, index // 9 * 9)
    assert all(torch.equal(row[:18], torch.cat([row[0] + torch.arange(9), row[9] + torch.arange(9)])) for row in index)
