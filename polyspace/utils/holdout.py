"""A part of the training clips kept aside for choices, so that none is made on the list that is reported."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from polyspace.utils.errors import UserError


def hold_out(
    groups: Sequence[str], labels: Sequence[int | None], share: float = 0.2, seed: int = 0
) -> Bool[Tensor, " n"]:
    """True for held-out clips: about `share` of every class's source videos, each video wholly on one side.

    A class with a single source video stays in training; where every class has only one, classes are passed over.
    The choice depends on names and seed only, not on order.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    by_class: dict[int | None, set[str]] = defaultdict(set)
    for group, label in zip(groups, labels, strict=True):
        by_class[label].add(group)
    if all(len(videos) == 1 for videos in by_class.values()):
        by_class = {None: set(groups)}
    kept: set[str] = set()
    held: set[str] = set()
    for label in sorted(by_class, key=lambda x: -1 if x is None else x):
        ranked = sorted(by_class[label], key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
        want = min(math.ceil(share * len(ranked)), len(ranked) - 1)
        want -= sum(g in held for g in ranked)
        for group in ranked:
            if group not in kept and group not in held:
                (held if want > 0 else kept).add(group)
                want -= 1
    mask = torch.tensor([g in held for g in groups], dtype=torch.bool)
    if not mask.any() or mask.all():
        raise UserError(
            f"no part of {len(groups)} clips from {len(set(groups))} source videos can be held out for choices"
        )
    return mask


def keep_fraction(
    labels: Sequence[int], among: Bool[Tensor, " n"], fraction: float, seed: int = 0
) -> Bool[Tensor, " n"]:
    """True for `fraction` of each class's clips in `among`, one at least, drawn at random: a smaller fraction of the
    same seed is a part of a larger one."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    label = torch.as_tensor(labels)
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for own in label[among].unique():
        rows = (among & (label == own)).nonzero().flatten()
        kept[rows[rank[rows].argsort()[: max(1, round(fraction * len(rows)))]]] = True
    return kept
