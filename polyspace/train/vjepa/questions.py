"""What the predictor is asked for: places, and what the target encoder knows there."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polyspace.models.hnet.dechunker import to_grid
from polyspace.models.hnet.encoder import cell_coords, pack_visible, take_rows
from polyspace.models.vjepa.encoded import Encoded
from polyspace.train.vjepa.masking import Masks
from polyspace.utils.distrib import all_reduce_sum
from polyspace.utils.misc import wide


@dataclass(frozen=True)
class Questions:
    """places (B,Q,3) asked for; what the target says there, goal (B,Q,D); weights (B,Q) of hidden and of seen ones; the
    grid cells (B,Q) where places are cells; valid (B,Q) where some rows are padding."""

    places: Tensor
    goal: Tensor
    hidden_weight: Tensor
    seen_weight: Tensor | None = None
    index: Tensor | None = None
    valid: Tensor | None = None


def grid_goals(known: Encoded, still: float = 0.0) -> Float[Tensor, "B N D"]:
    """What the target says of every cell, normalised without affine; with `still` as in `without_still`."""
    every = wide(known.on_grid())
    every = F.layer_norm(every, every.shape[-1:])
    return without_still(every, known.cells.grid[0], still) if still else every


def without_still(goal: Float[Tensor, "B N D"], steps: int, share: float) -> Float[Tensor, "B N D"]:
    """Goals without `share` of each place's mean over time, centred and scaled over all ranks' clips: of whole goals
    still ground is nearly all there is to know."""
    by_step = goal.unflatten(1, (steps, -1))  # (B,t·hw,D) -> (B,t,hw,D)
    moving = (by_step - share * by_step.mean(1, keepdim=True)).flatten(1, 2)
    cells = all_reduce_sum(moving.new_tensor(float(moving.shape[0] * moving.shape[1])))
    moving = moving - all_reduce_sum(moving.sum((0, 1))) / cells
    spread = all_reduce_sum(moving.square().sum()) / (cells * moving.shape[2] - 1)
    return moving / spread.sqrt().clamp_min(1e-6)


def grid_questions(
    known: Encoded, goals: Float[Tensor, "B N D"], masks: Masks, context: bool, power: float
) -> Questions:
    """The asked cells of each clip, and with `context` the visible ones behind them. A cell of a chunk weighs
    (1/size)^power: 0 alike, 1 as its share of the chunk."""
    device, grid = known.tokens.device, known.cells.grid
    index, valid = pack_visible(~masks.asked.flatten(1))
    hidden_weight, seen_weight = valid.float(), None
    if context:
        seen, seen_valid = pack_visible(masks.hidden.flatten(1))
        near = _nearness(masks, grid).gather(1, seen) * seen_valid
        index = torch.cat([index, seen], 1)
        seen_weight = torch.cat([torch.zeros_like(hidden_weight), near], 1).to(device)
        hidden_weight = torch.cat([hidden_weight, torch.zeros_like(near)], 1)
    index, hidden_weight = index.to(device), hidden_weight.to(device)
    if power and known.chunks is not None:
        share = _share(known, index) ** power
        hidden_weight = hidden_weight * share
        seen_weight = None if seen_weight is None else seen_weight * share
    return Questions(cell_coords(index, grid), take_rows(goals, index), hidden_weight, seen_weight, index)


def chunk_questions(known: Encoded, masks: Masks) -> Questions:
    """EMA chunks none of whose cells is visible and some of which are asked for. Their places and sizes are given to
    the predictor, so it knows where something changes in the hidden part, as it does not on the grid."""
    assert known.chunks is not None
    device = known.tokens.device
    parts = known.chunks.assignment
    visible = (parts * (~masks.hidden).flatten(1).to(device)[..., None]).sum(1)
    wanted = (parts * masks.asked.flatten(1).to(device)[..., None]).sum(1)
    weight = (known.valid & (visible < 1e-6) & (wanted > 0)).float()
    goal = F.layer_norm(wide(known.tokens), known.tokens.shape[-1:])
    return Questions(known.centroids, goal, weight, None, None, weight > 0)


def chunks_by_column(known: Encoded) -> Tensor:
    """(B,h,w): how many of the target's chunks begin in each column."""
    assert known.routing is not None
    t, h, w = known.cells.grid
    begins = to_grid(known.routing.cut.float()[..., None], known.cells.index, known.cells.valid, t * h * w)
    return begins.view(-1, t, h, w).sum(1)


def _share(known: Encoded, index: Tensor) -> Tensor:
    """Σ_k Ā_ik / size_k: a cell weighs as its share of its EMA chunk, whose other cells may be visible or not asked."""
    assert known.chunks is not None
    each = torch.where(known.valid, 1 / known.sizes.clamp_min(1e-6), 0)[..., None]
    return take_rows(known.chunks.assignment @ each, index).squeeze(-1)


def _nearness(masks: Masks, grid: tuple[int, int, int]) -> Tensor:
    """1/√d of each cell, d its distance in cells to the nearest hidden one (V-JEPA 2.1's context weight)."""
    places = cell_coords(torch.arange(grid[0] * grid[1] * grid[2])[None], grid)[0]
    out = []
    for hidden in masks.hidden.flatten(1):
        gap = torch.cdist(places, places[hidden]).amin(1) if bool(hidden.any()) else torch.ones(len(places))
        out.append(gap.clamp_min(1).rsqrt())
    return torch.stack(out)
