"""Pairs (student, teacher) in one pass, from a finished store or straight from videos: moments of all rows, and a
random sample of so many for what learns by steps. Memory depends on widths and sample sizes, never on the clips."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyspace.data import VideoDataset
from polyspace.data.extract import BatchDataset, Views, compute, run_batches
from polyspace.data.feature_store import FeatureStore
from polyspace.data.featurize import SourceConfig, forward_of
from polyspace.data.sampling import Sampling
from polyspace.models.backbones import BackboneCard
from polyspace.models.spaces.tokens import Grid, resample_tokens
from polyspace.utils.log import Progress
from polyspace.utils.misc import get_device
from polyspace.utils.moments import Moments


@dataclass(frozen=True)
class Block:
    """Some clips: space -> features (B,D), or tokens (B,N,D) on the space's grid; held (B,) True for held-out clips."""

    spaces: Mapping[str, Tensor]
    held: Tensor


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

    def rows(self) -> tuple[Tensor, ...]:
        self._settle()
        return self._rows


def store_blocks(store: FeatureStore, spaces: Sequence[str], held: Tensor, tokens: bool) -> Iterator[Block]:
    """A store's clips, shard by shard; tokens in small parts, since resampled copies are as large as the shard."""
    start, suffix = 0, ".tokens" if tokens else ""
    for shard in store.shards():
        rows = len(shard[spaces[0] + suffix])
        size = 16 if tokens else max(rows, 1)
        for first in range(0, rows, size):
            part = slice(first, min(first + size, rows))
            mask = held[start + part.start : start + part.stop]
            yield Block({name: shard[name + suffix][part] for name in spaces}, mask)
        start += rows


def stream_blocks(
    config: SourceConfig,
    source: tuple[VideoDataset, dict[str, BackboneCard]],
    held: Tensor,
    tokens: bool,
    failed: list[tuple[str, str]],
    batch: int = 2,
    min_frames: int = 2,
) -> Iterator[Block]:
    """Clips decoded and run through all backbones, handed on and forgotten; what can't be read is added to `failed`."""
    data, cards = source
    device = get_device(config.device)
    views = Views(Sampling.parse(config.sampling), config.views, config.crops, min_frames)
    plans = {name: card.plan for name, card in cards.items()}
    forwards = {name: forward_of(card.load().to(device), device, tokens) for name, card in cards.items()}
    in_workers = device.type == "cpu"
    paths = [record.path for record in data.records]
    need = plans[config.student].frames
    dataset = BatchDataset(paths, plans, views, need, batch, forwards if in_workers else None)
    suffix = ".tokens" if tokens else ""
    with Progress(len(paths), f"stream {data.name} {data.split}", "clip") as bar:
        for decoded in run_batches(dataset, range(len(dataset)), config.workers):
            if not in_workers:
                compute(decoded, forwards, views, None)
            at = decoded.index * batch
            good = [at + i for i, result in enumerate(decoded.results) if result.reason is None]
            failed += [
                (data.records[at + i].id, result.reason) for i, result in enumerate(decoded.results) if result.reason
            ]
            bar.step(len(decoded.results), failed=len(failed))
            if good:
                yield Block({name: decoded.features[name + suffix] for name in cards}, held[good])


def gather(
    blocks: Iterator[Block],
    student: str,
    teachers: Sequence[str],
    grids: Mapping[str, Grid] | None = None,
    *,
    rows: int = 100_000,
    held_rows: int = 4000,
    tokens_per_clip: int = 64,
    seed: int = 0,
) -> dict[str, Gathered]:
    """One pass over the blocks. With `grids` they hold tokens: the student's are resampled to each teacher's grid, and
    `tokens_per_clip` random places of every clip count as rows."""
    fit, held = ({name: Moments() for name in teachers} for _ in range(2))
    groups = [[name] for name in teachers] if grids else [list(teachers)]  # clip rows share one student row
    sizes = (max(1, rows // len(groups)), max(1, held_rows // len(groups)))
    kept = [[Reservoir(size, seed + 7 * i + part) for part, size in enumerate(sizes)] for i in range(len(groups))]
    places = torch.Generator().manual_seed(seed)
    for block in blocks:
        for group, reservoirs in zip(groups, kept, strict=True):
            x, ys, mask = _rows(block, student, group, grids, tokens_per_clip, places)
            for part, chosen, moments in ((0, ~mask, fit), (1, mask, held)):
                if chosen.any():
                    picked = [y[chosen] for y in ys]
                    for name, y in zip(group, picked, strict=True):
                        moments[name].update(x[chosen], y)
                    reservoirs[part].add(x[chosen], *picked)
    out = {}
    for group, (fitting, holding) in zip(groups, kept, strict=True):
        for i, name in enumerate(group):
            pairs = [(r.rows()[0], r.rows()[1 + i]) if r.rows() else _nothing() for r in (fitting, holding)]
            out[name] = Gathered(fit[name], held[name], pairs[0], pairs[1])
    return out


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
