"""What bench/learning.py measures of an arm: probes, controls, tokens, cost, and what the chunks follow."""

import time
from typing import Any

import torch
from learning_arms import CLASSES, Arm
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from polyspace.data.batch import VideoBatch
from polyspace.data.moving import MovingClips, motion_of, normalise
from polyspace.models.hnet.encoder import cell_coords
from polyspace.models.layers import sincos_code
from polyspace.models.vjepa.encoded import Encoded
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.probing import Part, attentive_probe, linear_probe
from polyspace.train.supervised import SupervisedPhase
from polyspace.train.vjepa.jepa import JepaPhase
from polyspace.utils.monitor import effective_rank

BUDGETS = (6, 12, 24, 36, 72)


@torch.no_grad()
def features(
    encoder: HNetViT | TubeletViT,
    clips: MovingClips,
    num_chunks: int | None = None,
    shuffle: bool = False,
    regions: bool = False,
) -> Part:
    """Tokens and their mean over real ones, in blocks of 100 clips; `shuffle` puts each clip's frames in random
    order."""
    pooled, tokens, valid, generator = [], [], [], torch.Generator().manual_seed(0)
    for block in clips.video.split(100):
        if shuffle:
            order = torch.rand(len(block), block.shape[1], generator=generator).argsort(1)
            block = block[torch.arange(len(block))[:, None], order]
        e = encode(encoder, normalise(block), num_chunks, regions)
        pooled.append(e.pooled())
        tokens.append(e.tokens)
        valid.append(e.valid)
    longest = max(t.shape[1] for t in tokens)
    padded = torch.cat([torch.nn.functional.pad(t, (0, 0, 0, longest - t.shape[1])) for t in tokens])
    mask = torch.cat([torch.nn.functional.pad(v, (0, longest - v.shape[1])) for v in valid])
    return Part(torch.cat(pooled), clips.label, padded, mask)


def encode(
    encoder: HNetViT | TubeletViT, video: Tensor, num_chunks: int | None = None, regions: bool = False
) -> Encoded:
    return encoder.encode(video, None, num_chunks, regions) if isinstance(encoder, HNetViT) else encoder.encode(video)


def target_of(phase: JepaPhase | SupervisedPhase) -> HNetViT | TubeletViT:
    return phase.target.model if isinstance(phase, JepaPhase) else phase.encoder


def measure_choice(phase: JepaPhase | SupervisedPhase, clips: dict[str, MovingClips]) -> dict[str, Any]:
    """What a setting is chosen by: the linear probe on the validation part, the same with a budget of 24 tokens, and
    what encoding a clip costs (CPU time: arms share a machine). The test part is not touched."""
    encoder = target_of(phase.eval())
    start = time.process_time()
    fit, choose = (features(encoder, clips[part]) for part in ("train", "validation"))
    spent = time.process_time() - start
    score = linear_probe(fit, choose, choose, CLASSES)
    out = {"validation": score, "rankme": effective_rank(choose.pooled).item(), "tokens": mean_tokens(choose)}
    out |= {"flops_per_clip": flops(encoder, clips["validation"].video[:16])}
    out |= {"encode_ms": 1e3 * spent / (len(fit.pooled) + len(choose.pooled))}
    if isinstance(encoder, HNetViT):
        fit, choose = (features(encoder, clips[part], regions=True) for part in ("train", "validation"))
        out |= {"regions_validation": linear_probe(fit, choose, choose, CLASSES), "regions_tokens": mean_tokens(choose)}
        if encoder.routing.gate is not None:
            fit, choose = (features(encoder, clips[part], 24) for part in ("train", "validation"))
            out["validation_24"] = linear_probe(fit, choose, choose, CLASSES)
    return out


def mean_tokens(part: Part) -> float:
    assert part.valid is not None
    return part.valid.sum(1).double().mean().item()


def measure(phase: JepaPhase | SupervisedPhase, arm: Arm, clips: dict[str, MovingClips]) -> dict[str, Any]:
    """Everything that the table holds, from the last state of the arm's (target) encoder."""
    encoder = target_of(phase.eval())
    start = time.perf_counter()
    fit, choose, test = (features(encoder, clips[part]) for part in ("train", "validation", "test"))
    spent = time.perf_counter() - start
    out: dict[str, Any] = {
        "linear": linear_probe(fit, choose, test, CLASSES),
        "validation": linear_probe(fit, choose, choose, CLASSES),
        "probe": attentive_probe(fit, choose, test, CLASSES),
        "rankme": effective_rank(test.pooled).item(),
        "tokens": mean_tokens(test),
        "encode_clips_per_s": sum(len(part.pooled) for part in (fit, choose, test)) / spent,
        "flops_per_clip": flops(encoder, clips["test"].video[:16]),
        "skill": skill(phase, clips["test"]) if isinstance(phase, JepaPhase) and arm.pretrain is not None else None,
    }
    mixed = [features(encoder, clips[part], shuffle=True) for part in ("train", "validation", "test")]
    out["shuffled"] = linear_probe(mixed[0], mixed[1], mixed[2], CLASSES)
    if isinstance(encoder, HNetViT):
        parts = [features(encoder, clips[part], regions=True) for part in ("train", "validation", "test")]
        out |= {"regions_linear": linear_probe(parts[0], parts[1], parts[2], CLASSES)}
        out |= {"regions_validation": linear_probe(parts[0], parts[1], parts[1], CLASSES)}
        out |= {"regions_tokens": mean_tokens(parts[2])}
    if isinstance(encoder, HNetViT) and encoder.routing.gate is not None:
        out |= chunk_measures(encoder, clips["test"])
        out["budget_tokens"], out["budget_linear"] = [], []
        for budget in BUDGETS:
            parts = [features(encoder, clips[part], budget) for part in ("train", "validation", "test")]
            out["budget_tokens"].append(budget)
            out["budget_linear"].append(linear_probe(parts[0], parts[1], parts[2], CLASSES))
    return out


@torch.no_grad()
def skill(phase: JepaPhase, clips: MovingClips) -> float:
    """1 − E(prediction) / E(median per position), mean over test batches with the run's own kind of masks."""
    values = []
    every = phase.settings.monitor_every
    for number, block in enumerate(clips.video[:512].split(64)):
        place = ((number + 1) * every - 1 + 10**6 * every, 0)
        values.append(phase(VideoBatch(video=normalise(block), place=place)).metrics["skill"])
    return torch.stack(values).mean().item()


@torch.no_grad()
def flops(encoder: HNetViT | TubeletViT, video: Tensor) -> float:
    """FLOPs of encoding one clip, 2 a multiply-add, mean over some clips (one at a time: no padding)."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        for clip in normalise(video):
            encode(encoder, clip[None])
    return counter.get_total_flops() / len(video)


@torch.no_grad()
def chunk_measures(encoder: HNetViT, clips: MovingClips, count: int = 100) -> dict[str, float]:
    """Over held-out clips: Spearman(M, motion); chunks of a still clip (first frames, with
    noise of their own in every frame) against the busiest tenth; adjusted Rand index
    of chunks and objects (per pixel, ground included, a pixel is in its cell's chunk), beside that of as many equal
    blocks of the grid. `*_cells`: the same per cell, which is what most of its pixels are; `ari_majority`: what cells
    reach that are labelled so by the masks themselves."""
    video = clips.video[:count]
    e = encoder.encode(normalise(video))
    assert e.chunks is not None and clips.mask is not None
    number = e.valid.sum(1).double()
    motion = motion_of(video).double()
    grain = 0.03 * 255 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))  # the generator's own
    repeated = (video[:, :1].float() + grain).round().clamp(0, 255).to(torch.uint8)
    still = encoder.encode(normalise(repeated))
    busy = number[motion.argsort(descending=True)[: count // 10]].mean()
    t, h, w = e.cells.grid
    pixels = clips.mask[:count].view(count, t, -1, h, encoder.unit, w, encoder.unit).permute(0, 1, 3, 5, 2, 4, 6)
    pixels = pixels.flatten(4).flatten(1, 3)  # (clips, cells, pixels of a cell)
    cells = pixels.mode(2, keepdim=True).values
    out = {
        "spearman_motion": float(spearmanr(number, motion).statistic),
        "still_over_busy": (still.valid.sum(1).double().mean() / busy).item(),
        "ari_majority": agreement(cells.squeeze(2), pixels),
    }
    ways: dict[str, tuple[int | None, bool]] = {"ari": (None, False), "ari_regions": (None, True)}
    for name, (budget, regions) in (ways | {f"ari_{k}": (k, False) for k in (24, 12)}).items():
        part = encoder.encode(normalise(video), None, budget, regions)
        assert part.chunks is not None
        owner = part.chunks.assignment.argmax(-1)
        blocks = fixed_blocks((t, h, w), part.valid.sum(1).double().mean().item())
        for way, truth in (("", pixels), ("_cells", cells)):
            out[name + way] = agreement(owner, truth)
            out[f"{name}{way}_grid"] = agreement(blocks.expand(count, -1), truth)
        out[f"{name}_grid_blocks"] = int(blocks.max()) + 1
    return out


def agreement(owner: Tensor, truth: Tensor) -> float:
    """Mean adjusted Rand index of chunks (n,cells) and objects (n,cells,pixels; 0 ground), where an object is."""
    owner = owner[..., None].expand_as(truth)
    scores = [adjusted_rand_score(c.flatten(), o.flatten()) for o, c in zip(owner, truth, strict=True) if c.any()]
    return float(sum(scores) / len(scores))


def fixed_blocks(grid: tuple[int, int, int], number: float) -> Tensor:
    """The control without content: the grid cut into about so many equal blocks, in time as seldom as possible."""
    cuts = [(a, b, c) for a in range(1, grid[0] + 1) for b in range(1, grid[1] + 1) for c in range(1, grid[2] + 1)]
    best = min(cuts, key=lambda n: (abs(n[0] * n[1] * n[2] - number), n[0], abs(n[1] - n[2])))
    at = [torch.arange(size) * parts // size for size, parts in zip(grid, best, strict=True)]
    return ((at[0][:, None, None] * best[1] + at[1][:, None]) * best[2] + at[2]).flatten()


def raw_pixels(clips: dict[str, MovingClips]) -> dict[str, Any]:
    """Probes on pixels: 4×4 means of every frame as one vector; cells' pixels and the code of their place as tokens."""
    parts = []
    for part in ("train", "validation", "test"):
        video = normalise(clips[part].video)
        n, t, s, _, _ = video.shape
        small = video.view(n, t, s // 4, 4, s // 4, 4, 3).mean((3, 5)).flatten(1)
        cells = video.view(n, t // 2, 2, s // 8, 8, s // 8, 8, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
        grid = (t // 2, s // 8, s // 8)
        tokens = cells.reshape(n, grid[0] * grid[1] * grid[2], -1)
        code = sincos_code(cell_coords(torch.arange(tokens.shape[1])[None], grid), 96).expand(n, -1, -1)
        parts.append(Part(small, clips[part].label, torch.cat([tokens, code], -1)))
    linear = linear_probe(parts[0], parts[1], parts[2], CLASSES)
    return {"linear": linear, "probe": attentive_probe(parts[0], parts[1], parts[2], CLASSES), "skill": None}
