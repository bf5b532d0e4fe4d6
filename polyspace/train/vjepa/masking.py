"""Which cells are hidden and which are asked for: space tubes and the future, a pure function of a clip's place in the
run, so that neither the number of ranks nor a restart changes a mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Grid = tuple[int, int, int]
Kind = Literal["future", "tube"]


@dataclass(frozen=True)
class Masks:
    """hidden (B,t,h,w): not to be seen. asked (B,t,h,w): hidden cells whose latents are to be predicted."""

    hidden: Bool[Tensor, "B t h w"]
    asked: Bool[Tensor, "B t h w"]
    kind: Kind


@dataclass(frozen=True)
class MaskPlan:
    """future_share: share of steps that hide the future; the others hide space tubes. A hidden future begins after 1
    to t − 1 seen steps; `horizon` steps of it are asked for (0: all). Tubes: a share of all columns drawn from
    `tube_ratios` is hidden, in blocks of `block_scale` of the frame with aspect 0.75–1.5, full time; every clip of a
    step has equally many. `block_scale` 0 hides single columns."""

    future_share: float = 1.0
    horizon: int = 2
    tube_ratios: tuple[float, ...] = (0.75, 0.9)
    block_scale: float = 0.15

    def draw(
        self, grid: Grid, seed: int, step: int, indices: Sequence[int], chunks: Float[Tensor, "B h w"] | None = None
    ) -> Masks:
        """Masks of the clips at these indices of the global batch of update `step`. With `chunks`, how many chunks lie
        in each column, half of a tube mask's columns are those around chunks drawn at random, the rest are random."""
        common = _generator(seed, step, -1)
        future = grid[0] > 1 and torch.rand((), generator=common).item() < self.future_share
        if future:
            return self._future(grid, common, len(indices))
        ratio = self.tube_ratios[int(torch.randint(len(self.tube_ratios), (), generator=common))]
        columns = grid[1] * grid[2]
        number = min(max(round(ratio * columns), 1), columns - 1)
        generators = [_generator(seed, step, i) for i in indices]
        if chunks is None:
            tubes = [_tube(grid, number, self.block_scale, g) for g in generators]
        else:
            tubes = [_around(own.cpu(), number, g) for own, g in zip(chunks, generators, strict=True)]
        hidden = torch.stack(tubes)[:, None].expand(-1, grid[0], -1, -1)
        return Masks(hidden, hidden, "tube")

    def _future(self, grid: Grid, generator: torch.Generator, count: int) -> Masks:
        t, h, w = grid
        seen = int(torch.randint(1, t, (), generator=generator))
        step = torch.arange(t)[None, :, None, None].expand(count, t, h, w)
        hidden = step >= seen
        asked = hidden if self.horizon == 0 else hidden & (step < seen + self.horizon)
        return Masks(hidden, asked, "future")


def _generator(seed: int, step: int, index: int) -> torch.Generator:
    """A generator of its own for each (seed, step, index); three odd primes keep them apart."""
    mixed = (seed * 1_000_003 + step) * 2_147_483_629 + index * 69_997 + 12_345
    return torch.Generator().manual_seed(mixed % (2**63))


def _tube(grid: Grid, number: int, scale: float, generator: torch.Generator) -> Bool[Tensor, "h w"]:
    """Exactly `number` hidden columns: a union of blocks, then single columns given back or taken at random."""
    _, h, w = grid
    hidden = torch.zeros(h, w, dtype=torch.bool)
    while scale > 0 and int(hidden.sum()) < number:
        aspect = 0.75 + 0.75 * torch.rand((), generator=generator).item()
        rows = min(max(round((scale * h * w * aspect) ** 0.5), 1), h)
        cols = min(max(round((scale * h * w / aspect) ** 0.5), 1), w)
        top = int(torch.randint(h - rows + 1, (), generator=generator))
        left = int(torch.randint(w - cols + 1, (), generator=generator))
        hidden[top : top + rows, left : left + cols] = True
    return _exactly(number, hidden, generator)


def _around(chunks: Float[Tensor, "h w"], number: int, generator: torch.Generator) -> Bool[Tensor, "h w"]:
    """Exactly `number` hidden columns: the chunks drawn lie in their midst, at most half of the frame, then others."""
    h, w = chunks.shape
    hidden = torch.zeros(h, w, dtype=torch.bool)
    held = int((chunks > 0).sum())
    order = torch.multinomial(chunks.flatten(), held, generator=generator) if held else []  # each column once: it ends
    for place in order:
        if int(hidden.sum()) >= number / 2:
            break
        row, column = divmod(int(place), w)
        hidden[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    return _exactly(number, hidden, generator)


def _exactly(number: int, hidden: Bool[Tensor, "h w"], generator: torch.Generator) -> Bool[Tensor, "h w"]:
    """Single columns given back or taken at random until `number` are hidden."""
    noise = torch.rand(hidden.numel(), generator=generator)
    order = (hidden.flatten().float() + noise).argsort(descending=True)  # hidden ones first, in random order
    out = torch.zeros(hidden.numel(), dtype=torch.bool)
    out[order[:number]] = True
    return out.view(hidden.shape)
