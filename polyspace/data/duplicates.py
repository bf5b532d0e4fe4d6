"""Which clips are the same clip: a small picture of each over time, hashed to find candidates, compared to tell.

A clip's sketch is FRAMES grey pictures of SIDE × SIDE pixels from the middles of equal segments. Two sketches are
compared by correlation, which brightness and contrast leave alone, twice: the pictures' mean over time (what the scene
looks like), and what is left without it (what moves, so that two clips of one fixed camera are told apart). A trimmed
copy is met by trying cuts of up to a fifth at either end, a mirrored one by mirroring. Candidates come from perceptual
hashes by multi-index hashing (Norouzi et al., CVPR 2012): the work grows with the clips, not with their square.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8, UInt64
from torch import Tensor

from polyspace.data.sampling import segment_indices
from polyspace.data.video import VideoReader

FRAMES, SIDE = 12, 12
THRESHOLD = 0.4  # measured: docs/results/duplicates.md
RADIUS = 8  # bits of 48 in which the hashes of one clip and its copy may differ
STILL = 1.0  # grey levels: below this root mean square nothing moves that a codec would not move as well
_CUTS = (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2)
_PART, _PARTS = 16, 3
BITS = _PART * _PARTS
_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Pair:
    """Two rows of the sketches that show one clip. `still`: nothing moves in either, only the scene speaks for it."""

    first: int
    second: int
    distance: float
    mirrored: bool
    still: bool


def sketch(path: Path) -> UInt8[np.ndarray, "T S S"]:
    """The sketch of a video file; VideoError where it can't be read."""
    with VideoReader(path) as video:
        _, frames = video.sample(lambda count: segment_indices(count, FRAMES))
    grey = frames.float() @ torch.tensor([0.299, 0.587, 0.114])
    return torch.nn.functional.adaptive_avg_pool2d(grey, SIDE).round().to(torch.uint8).numpy()


def perceptual_hashes(sketches: UInt8[np.ndarray, "N T S S"]) -> UInt64[np.ndarray, "2 N"]:
    """48 bits each of a clip's mean picture and of the picture of what changes (its deviation over time): the signs of
    the 48 lowest frequencies of their cosine transform, against their median."""
    place = np.arange(SIDE)
    waves = np.cos(np.pi * np.outer(place, place + 0.5) / SIDE)
    lowest = sorted(itertools.product(place, place), key=lambda f: (f[0] ** 2 + f[1] ** 2, f))[1 : 1 + BITS]
    rows, columns = np.array(lowest).T
    weight = np.uint64(1) << np.arange(BITS, dtype=np.uint64)
    out = np.empty((2, len(sketches)), np.uint64)
    for start in range(0, len(sketches), 4096):
        block = sketches[start : start + 4096].astype(np.float32)
        for kind, picture in enumerate((block.mean(1), block.std(1))):
            found = (waves @ picture @ waves.T)[:, rows, columns]
            bits = found > np.median(found, axis=1, keepdims=True)
            out[kind, start : start + 4096] = (bits * weight).sum(1, dtype=np.uint64)
    return out


def near_hashes(
    keys: UInt64[np.ndarray, " N"], queries: UInt64[np.ndarray, " M"], radius: int = RADIUS
) -> Iterator[tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]]:
    """All (row of keys, row of queries) whose hashes differ in at most `radius` bits, each once, in bounded blocks.

    Of three parts of 16 bits one differs in radius/3 bits at most: keys are sorted by a part and looked up under every
    such change of the query's. A pair that an earlier part has found is left to it.
    """
    most = radius // _PARTS
    flips = [sum(1 << b for b in bits) for n in range(most + 1) for bits in itertools.combinations(range(_PART), n)]
    for part in range(_PARTS):
        shift = np.uint64(part * _PART)
        values, wanted = ((h >> shift).astype(np.uint16) for h in (keys, queries))
        order = np.argsort(values, kind="stable")
        begin = np.searchsorted(values[order], np.arange((1 << _PART) + 1))  # rows begin[v] … begin[v + 1] − 1 have v
        for flip in flips:
            place = (wanted ^ np.uint16(flip)).astype(np.int64)
            for first, second in _expand(order, begin[place], begin[place + 1]):
                apart = keys[first] ^ queries[second]
                keep = np.bitwise_count(apart) <= radius
                for earlier in range(part):
                    bits = (apart >> np.uint64(earlier * _PART)).astype(np.uint16)
                    keep &= np.bitwise_count(bits) > most
                if keep.any():
                    yield first[keep], second[keep]


def _expand(order: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows order[low…high−1] beside each query, some `_PAIRS_AT_ONCE` at a time."""
    queries = np.flatnonzero(high > low)
    ends = np.cumsum((high - low)[queries])
    start = 0
    while start < len(queries):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, "right")))
        some = queries[start:stop]
        count = (high - low)[some]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        yield order[np.repeat(low[some], count) + within], np.repeat(some, count)
        start = stop


@lru_cache
def _forms() -> dict[str, Float[Tensor, "W TT"]]:
    """For each pair of cuts (start, end) what turns the frames' inner products of two sketches into those of their
    scenes and of their motions, once the first is warped to the times of a clip that was cut so: with G = A·Bᵀ (T,T),
    warp matrix M, and s = 1/n at the n times that lie within A (else 0), ⟨scene⟩ = (Mᵀs)ᵀ G s and
    ⟨motion⟩ = Σ_j n s_j (M G)_jj − n ⟨scene⟩; likewise with A·Aᵀ and B·Bᵀ for their energies."""
    rows: dict[str, list[Tensor]] = {
        key: [] for key in ("scene", "motion", "scene_a", "motion_a", "scene_b", "motion_b")
    }
    for start, end in itertools.product(_CUTS, _CUTS):
        at = (start + (1 - start - end) * (torch.arange(FRAMES) + 0.5) / FRAMES) * FRAMES - 0.5
        inside = ((at >= -0.5) & (at <= FRAMES - 0.5)).float()
        warp = (1 - (at.clamp(0, FRAMES - 1)[:, None] - torch.arange(FRAMES)).abs()).clamp_min(0)
        count, mean_b = inside.sum(), inside / inside.sum()
        mean_a = warp.T @ mean_b
        for key, left, right, products in (
            ("", mean_a, mean_b, warp.T * inside),
            ("_a", mean_a, mean_a, warp.T @ (inside[:, None] * warp)),
            ("_b", mean_b, mean_b, torch.diag(inside)),
        ):
            scene = torch.outer(left, right)
            rows[f"scene{key}"].append(scene.flatten())
            rows[f"motion{key}"].append((products - count * scene).flatten())
    return {key: torch.stack(value) for key, value in rows.items()}


def compare(
    x: UInt8[np.ndarray, "P T S S"], y: UInt8[np.ndarray, "P T S S"]
) -> tuple[Float64[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """Distance of each pair, 0 for the same and about 1 for unrelated clips, and whether both are still.

    The larger of 1 − correlation of the scene and 1 − correlation of what moves, least over the cuts; of the scene
    alone where both are still. A frame's mean brightness counts for nothing.
    """
    a, b = (torch.from_numpy(v).float().flatten(2) for v in (x, y))  # (P,T,D)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    grams = {key: (u @ v.mT).flatten(1) for key, u, v in (("", a, b), ("_a", a, a), ("_b", b, b))}
    value = {key: grams[key.removeprefix("scene").removeprefix("motion")] @ form.T for key, form in _forms().items()}
    uncut = len(_CUTS) ** 2 // 2
    floor = SIDE * SIDE * STILL**2
    still = (value["motion_a"][:, uncut] < FRAMES * floor) & (value["motion_b"][:, uncut] < FRAMES * floor)
    scene = 1 - _correlation(value["scene"], value["scene_a"], value["scene_b"], floor)
    motion = 1 - _correlation(value["motion"], value["motion_a"], value["motion_b"], floor)
    distance = torch.where(still[:, None], scene, torch.maximum(scene, motion)).amin(1).clamp_min(0)
    return distance.double().numpy(), still.numpy()


def _correlation(
    inner: Float[Tensor, "P W"], energy_a: Float[Tensor, "P W"], energy_b: Float[Tensor, "P W"], floor: float
) -> Float[Tensor, "P W"]:
    """inner/√(energies); 1 where both energies are below `floor`, 0 where one is."""
    both, one = (energy_a < floor) & (energy_b < floor), (energy_a < floor) ^ (energy_b < floor)
    value = inner / (energy_a * energy_b).clamp_min(1e-12).sqrt()
    return torch.where(both, 1.0, torch.where(one, 0.0, value))


def find_pairs(sketches: UInt8[np.ndarray, "N T S S"], threshold: float = THRESHOLD, block: int = 1024) -> list[Pair]:
    """Every pair of clips nearer than `threshold`, each once, by its nearer form where both the mirrored and the plain
    one are near."""
    hashes = perceptual_hashes(sketches)
    found: dict[tuple[int, int], Pair] = {}
    for mirrored in (False, True):
        others = sketches[..., ::-1] if mirrored else sketches
        seconds = perceptual_hashes(others) if mirrored else hashes
        for first, second in _candidates(hashes, seconds):
            for start in range(0, len(first), block):
                i, j = first[start : start + block], second[start : start + block]
                distance, still = compare(sketches[i], np.ascontiguousarray(others[j]))
                for k in np.flatnonzero(distance < threshold):
                    pair = Pair(int(i[k]), int(j[k]), round(float(distance[k]), 4), mirrored, bool(still[k]))
                    known = found.get((pair.first, pair.second))
                    if known is None or pair.distance < known.distance:
                        found[pair.first, pair.second] = pair
    return [found[key] for key in sorted(found)]


def _candidates(hashes: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (i < j) near in either hash, each once."""
    for kind in (0, 1):
        for first, second in near_hashes(hashes[kind], others[kind]):
            keep = first < second
            if kind:
                keep &= np.bitwise_count(hashes[0][first] ^ others[0][second]) > RADIUS
            if keep.any():
                yield first[keep], second[keep]
