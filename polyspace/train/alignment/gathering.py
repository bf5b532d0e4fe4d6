"""One pass over pairs: moments of all rows, samples of some, and a state that the pass can be continued from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyspace.models.spaces.tokens import Grid, resample_tokens
from polyspace.train.alignment.pairs import Block
from polyspace.utils.moments import Moments


@dataclass(frozen=True)
class Gathered:
    """Of one teacher: moments of the fitting and of the held-out part, and samples of their rows (x, y)."""

    fit: Moments
    held: Moments
    rows: tuple[Tensor, Tensor]
    held_rows: tuple[Tensor, Tensor]


class Reservoir:
    """A uniform sample without replacement of the rows of a stream: those with the smallest random keys.

    The keys come from a generator of its own, so the same stream gives the same sample; a stream that fits is kept
    whole, in its order.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity, self._generator = capacity, torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0, dtype=torch.float64)
        self._rows: tuple[Tensor, ...] = ()
        self._waiting: list[tuple[Tensor, ...]] = []
        self._count = 0

    def add(self, *rows: Tensor) -> None:
        """Row-aligned tensors, the same ones at every call."""
        self._waiting.append(rows)
        self._count += len(rows[0])
        if self._count >= 2 * self.capacity:
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        fresh = tuple(torch.cat(part) for part in zip(*self._waiting, strict=True))
        drawn = torch.rand(len(fresh[0]), generator=self._generator, dtype=torch.float64)
        keys = torch.cat([self._keys, drawn])
        rows = tuple(torch.cat(p) for p in zip(self._rows, fresh, strict=True)) if self._rows else fresh
        if len(keys) > self.capacity:
            kept = keys.argsort(stable=True)[: self.capacity].sort().values
            keys, rows = keys[kept], tuple(part[kept] for part in rows)
        self._keys, self._rows, self._waiting, self._count = keys, rows, [], len(keys)

    def state(self) -> dict[str, Any]:
        self._settle()
        return {"keys": self._keys, "rows": list(self._rows), "generator": self._generator.get_state()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._keys, self._rows, self._waiting = state["keys"], tuple(state["rows"]), []
        self._count = len(self._keys)
        self._generator.set_state(state["generator"])

    def rows(self) -> tuple[Tensor, ...]:
        self._settle()
        return self._rows


class Gatherer:
    """Takes blocks one by one. With `grids` they hold tokens: the student's are resampled to each teacher's grid, and
    `tokens_per_clip` random places of every clip count as rows. Memory depends on `rows` and the widths only."""

    def __init__(
        self,
        student: str,
        teachers: Sequence[str],
        grids: Mapping[str, Grid] | None = None,
        *,
        rows: int = 100_000,
        held_rows: int = 4000,
        tokens_per_clip: int = 64,
        seed: int = 0,
    ) -> None:
        self.student, self.grids, self.tokens_per_clip = student, grids, tokens_per_clip
        self.groups = [[name] for name in teachers] if grids else [list(teachers)]  # clip rows share one student row
        self.moments = {(name, part): Moments() for name in teachers for part in (0, 1)}  # 0: fitting, 1: held out
        sizes = (max(1, rows // len(self.groups)), max(1, held_rows // len(self.groups)))
        self.kept = {
            (i, part): Reservoir(size, seed + 7 * i + part)
            for i in range(len(self.groups))
            for part, size in enumerate(sizes)
        }
        self.places = torch.Generator().manual_seed(seed)

    def add(self, block: Block) -> None:
        if not block.spaces:
            return
        for i, group in enumerate(self.groups):
            x, ys, mask = _rows(block, self.student, group, self.grids, self.tokens_per_clip, self.places)
            for part, chosen in enumerate((~mask, mask)):
                if chosen.any():
                    picked = [y[chosen] for y in ys]
                    for name, y in zip(group, picked, strict=True):
                        self.moments[name, part].update(x[chosen], y)
                    self.kept[i, part].add(x[chosen], *picked)

    def result(self) -> dict[str, Gathered]:
        out = {}
        for i, group in enumerate(self.groups):
            sampled = [self.kept[i, part].rows() for part in (0, 1)]
            for k, name in enumerate(group):
                pairs = [(rows[0], rows[1 + k]) if rows else _nothing() for rows in sampled]
                out[name] = Gathered(self.moments[name, 0], self.moments[name, 1], pairs[0], pairs[1])
        return out

    def state(self) -> dict[str, Any]:
        """What `load` goes on from, bit for bit."""
        moments = {f"{name} {part}": m.state() for (name, part), m in self.moments.items()}
        kept = {f"{i} {part}": r.state() for (i, part), r in self.kept.items()}
        return {"moments": moments, "kept": kept, "places": self.places.get_state()}

    def load(self, state: Mapping[str, Any]) -> None:
        for name, part in self.moments:
            self.moments[name, part] = Moments.from_state(state["moments"][f"{name} {part}"])
        for (i, part), reservoir in self.kept.items():
            reservoir.load(state["kept"][f"{i} {part}"])
        self.places.set_state(state["places"])


def gather(
    blocks: Iterator[Block], student: str, teachers: Sequence[str], *args: Any, **kw: Any
) -> dict[str, Gathered]:
    """All blocks through a `Gatherer` made with the other arguments."""
    gatherer = Gatherer(student, teachers, *args, **kw)
    for block in blocks:
        gatherer.add(block)
    return gatherer.result()


def _nothing() -> tuple[Tensor, Tensor]:
    return torch.empty(0, 0), torch.empty(0, 0)


def _rows(
    block: Block,
    student: str,
    teachers: Sequence[str],
    grids: Mapping[str, Grid] | None,
    tokens_per_clip: int,
    generator: torch.Generator,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """(student rows, each teacher's rows, held-out mask) of a block."""
    if grids is None:
        return block.spaces[student].float(), [block.spaces[name].float() for name in teachers], block.held
    (teacher,) = teachers
    y = block.spaces[teacher].float()
    x = resample_tokens(block.spaces[student].float(), grids[student], grids[teacher])
    clips, tokens, _ = y.shape
    count = min(tokens_per_clip, tokens)
    index = torch.rand(clips, tokens, generator=generator).topk(count, dim=1).indices
    x, y = (z.gather(1, index[..., None].expand(-1, -1, z.shape[-1])).flatten(0, 1) for z in (x, y))
    return x, [y], block.held.repeat_interleave(count)
