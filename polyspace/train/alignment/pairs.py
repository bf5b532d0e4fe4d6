"""Pairs of student and teacher features, block by block: from a finished store, or straight from videos."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from polyspace.data import VideoDataset
from polyspace.data.extract import BatchDataset, Views, compute, run_batches
from polyspace.data.feature_store import FeatureStore
from polyspace.data.featurize import SourceConfig, forward_of
from polyspace.data.sampling import Sampling
from polyspace.models.backbones import BackboneCard
from polyspace.utils.log import Progress
from polyspace.utils.misc import get_device


@dataclass(frozen=True)
class Block:
    """Some clips: space -> features (B,D), or tokens (B,N,D) on the space's grid; held (B,) True for held-out clips.
    A batch of a stream of which nothing can be read has no spaces. `done`: batches that lie behind, this one's among
    them."""

    spaces: Mapping[str, Tensor]
    held: Tensor
    done: int = 0


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
    start: int = 0,
    batch: int = 2,
    min_frames: int = 2,
) -> Iterator[Block]:
    """Clips from batch `start` on: decoded, run through all backbones, handed on and forgotten. What can't be read is
    added to `failed`."""
    data, cards = source
    if start * batch >= len(data.records):
        return  # a pass that was at its end: no backbone need be loaded
    device = get_device(config.device)
    views = Views(Sampling.parse(config.sampling), config.views, config.crops, min_frames)
    plans = {name: card.plan for name, card in cards.items()}
    forwards = {name: forward_of(card, device, tokens, config.precision) for name, card in cards.items()}
    in_workers = device.type == "cpu"
    paths = [record.path for record in data.records]
    need = plans[config.student].frames
    dataset = BatchDataset(paths, plans, views, need, batch, forwards if in_workers else None)
    suffix = ".tokens" if tokens else ""
    with Progress(max(0, len(paths) - start * batch), f"stream {data.name} {data.split}", "clip") as bar:
        for decoded in run_batches(dataset, range(start, len(dataset)), config.workers):
            if not in_workers:
                compute(decoded, forwards, views, None)
            at = decoded.index * batch
            good = [at + i for i, result in enumerate(decoded.results) if result.reason is None]
            failed += [
                (data.records[at + i].id, result.reason) for i, result in enumerate(decoded.results) if result.reason
            ]
            bar.step(len(decoded.results), failed=len(failed))
            spaces = {name: decoded.features[name + suffix] for name in cards} if good else {}
            yield Block(spaces, held[good], decoded.index + 1)
