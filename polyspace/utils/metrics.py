"""Scores of classifiers and of translated features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def top_k_hits(logits: Float[Tensor, "n K"], labels: Int64[Tensor, " n"], k: int) -> Tensor:
    """1.0 where the label is among the k highest logits, else 0.0; (n,) float64. Ties count against the label."""
    own = logits.gather(1, labels[:, None])
    better = (logits >= own).sum(1) - 1
    return (better < k).double()


def recall_at(similarity: Float[Tensor, "n n"], ranks: Sequence[int]) -> dict[int, float]:
    """Share of rows whose own column (i, i) is among the k most similar, for each k. Ties count against it."""
    own = torch.arange(len(similarity), device=similarity.device)
    return {k: top_k_hits(similarity, own, k).mean().item() for k in ranks}


def average_precision(score: Float[Tensor, "n K"], label: Float[Tensor, "n K"]) -> float:
    """Mean over classes that occur of the area under precision over recall (the mean precision at each positive)."""
    out = []
    for s, y in zip(score.T, label.T, strict=True):
        if bool(y.any()):
            hits = y[s.argsort(descending=True, stable=True)].double()
            at = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
            out.append((at * hits).sum() / hits.sum())
    return torch.stack(out).mean().item() if out else float("nan")


def mean_class_accuracy(hits: Float[Tensor, " n"], labels: Int64[Tensor, " n"]) -> float:
    """Mean over the classes that occur of their share of hits."""
    return sum(hits[labels == c].mean().item() for c in labels.unique()) / len(labels.unique())


def confusion_matrix(predicted: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], classes: int) -> Int64[Tensor, "K K"]:
    """Counts; rows are true classes, columns predicted ones."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def bootstrap_interval(
    values: Float[Tensor, " n"], seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over clips; for paired comparisons give the differences."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values.double()[picks].mean(1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return low.item(), high.item()


def group_interval(values: Float[Tensor, " n"], groups: Int64[Tensor, " n"], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over clips, drawing whole groups: clips of one source are not independent."""
    known, place = groups.unique(return_inverse=True)
    sums = torch.zeros(len(known), dtype=torch.float64).index_add(0, place, values.double())
    sizes = torch.bincount(place, minlength=len(known)).double()
    picks = torch.randint(len(known), (2000, len(known)), generator=torch.Generator().manual_seed(seed))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def wilson_interval(wins: int, trials: int) -> tuple[float, float]:
    """95 % interval of a rate from counts, which holds near 0 and 1 too (Wilson 1927)."""
    if not 0 <= wins <= trials or trials < 1:
        raise ValueError(f"{wins} wins of {trials} trials")
    z, p = 1.959964, wins / trials
    centre, half = p + z * z / (2 * trials), z * (p * (1 - p) / trials + z * z / (4 * trials**2)) ** 0.5
    return (centre - half) / (1 + z * z / trials), (centre + half) / (1 + z * z / trials)


# Student's t, 97.5 %, for 1 … 30 degrees of freedom
_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def seed_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of a score over repeated runs, and its 95 % t interval (low, high); two runs at least."""
    x = torch.tensor(values, dtype=torch.float64)
    if len(x) < 2:
        raise ValueError("an interval over runs needs at least two of them")
    half = _T975[min(len(x) - 1, len(_T975)) - 1] * x.std().item() / len(x) ** 0.5
    return x.mean().item(), x.mean().item() - half, x.mean().item() + half


def mean_cosine(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """Mean cosine between corresponding rows."""
    return F.cosine_similarity(x.double(), y.double(), dim=1).mean().item()


def knn_overlap(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], k: int = 10, most: int = 2000) -> float:
    """Mean share of common members among the k nearest neighbours (cosine) of each row in both spaces.

    Uses the first `most` rows. Chance is k/(n − 1).
    """
    x, y = x[:most].double(), y[:most].double()
    k = min(k, len(x) - 1)
    if k < 1:
        return float("nan")
    near = [_neighbours(z, k) for z in (x, y)]
    common = (near[0][:, :, None] == near[1][:, None, :]).any(2)
    return common.double().mean().item()


def _neighbours(z: Tensor, k: int) -> Tensor:
    z = F.normalize(z - z.mean(0), dim=1)
    return (z @ z.T).fill_diagonal_(float("-inf")).topk(k, dim=1).indices


def r2_score(predicted: Float[Tensor, "n d"], true: Float[Tensor, "n d"], baseline: Float[Tensor, " d"]) -> float:
    """1 − Σ‖predicted − true‖² / Σ‖baseline − true‖²; `baseline` is the constant that a mean predictor would give."""
    error, total = (predicted - true).double().square().sum(), (baseline - true).double().square().sum()
    return (1 - error / total).item() if total > 0 else 0.0


def spearman_interval(
    x: Float[Tensor, " n"], y: Float[Tensor, " n"], draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Rank correlation (ties share their mean rank) and its 95 % bootstrap interval over pairs; NaN where one of both
    is constant."""

    def ranks(z: Tensor) -> Tensor:
        less = (z[..., None, :] < z[..., :, None]).sum(-1)
        equal = (z[..., None, :] == z[..., :, None]).sum(-1)
        return (less + (equal - 1) / 2).double()

    def correlation(pairs: Tensor) -> Tensor:
        a, b = (ranks(pairs[..., k]) for k in (0, 1))
        a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
        return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()

    pairs = torch.stack([x, y], -1)
    rows = torch.randint(len(x), (draws, len(x)), generator=torch.Generator().manual_seed(seed))
    found = torch.cat([correlation(pairs[part]) for part in rows.split(100)])
    found = found[found.isfinite()]
    whole = correlation(pairs).item()
    if not len(found):
        return whole, whole, whole
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return whole, low, high
