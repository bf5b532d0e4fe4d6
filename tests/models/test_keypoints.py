"""Keypoints find what actions move, from actions alone."""

import pytest
import torch

from polyspace.models.keypoints import ActionKeypoints, explained_travel, travel_loss

SIDE = 6
PLACES = torch.cartesian_prod(torch.zeros(1), torch.arange(float(SIDE)), torch.arange(float(SIDE)))


def bumps(at: torch.Tensor) -> torch.Tensor:
    """A thing at (B,2), rows and columns, as each cell sees it: how bright, and on which side of its middle."""
    apart = at[:, None] - PLACES[:, 1:]
    bright = torch.exp(-apart.square().sum(-1, keepdim=True))
    return torch.cat([bright, bright * apart], -1)


def scenes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two frames of each scene and the travel between. What is moved has a look of its own; something brighter moves
    on its own account."""
    draw = torch.Generator().manual_seed(seed)
    start, end, other, other_end = (torch.rand(count, 2, generator=draw) * (SIDE - 1) for _ in range(4))
    first, later = (torch.cat([bumps(a), 2 * bumps(b)], -1) for a, b in ((start, other), (end, other_end)))
    return first, later, (end - start).flip(1)  # the action's first dim is columns


def test_what_actions_move_is_found_beside_something_that_moves_by_itself():
    torch.manual_seed(0)
    model = ActionKeypoints(6, 2, keypoints=2, width=16)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(400):
        first, later, travel = scenes(64, step)
        loss = travel_loss(model(first, PLACES), model(later, PLACES), travel)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, later, travel = scenes(256, 10_000)
    with torch.no_grad():
        a, b = model(first, PLACES), model(later, PLACES)
        assert (explained_travel(a, b, travel)[1] > 0.9).all()
        shuffled = explained_travel(a, b, travel.roll(1, 0))  # the control: another scene's travel
    assert (shuffled[1] < 0.2).all()


def test_points_move_with_the_cells():
    torch.manual_seed(0)
    model = ActionKeypoints(6, 2)
    z = torch.randn(3, SIDE * SIDE, 6)
    moved = PLACES + torch.tensor([0.0, 2.0, -1.0])
    with torch.no_grad():
        assert torch.allclose(model.points(z, moved), model.points(z, PLACES) + torch.tensor([2.0, -1.0]), atol=1e-5)


def test_explained_travel_is_one_when_told_and_nought_for_standing_still():
    travel = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    travel[:, 1] = 0.0  # nothing to tell
    none = torch.zeros_like(travel)
    for later, share in ((travel, 1.0), (none, 0.0), (-travel, -3.0)):
        whole, dims = explained_travel(none, later, travel)
        assert whole.item() == pytest.approx(share, abs=1e-5) and dims[1].isnan()
        assert torch.allclose(dims[[0, 2]], torch.full((2,), share), atol=1e-5)
