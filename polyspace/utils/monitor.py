"""Numbers that tell whether a representation is alive, and the sentence to say when it isn't."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(x: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """exp of the entropy of the normalised singular values of the centred rows: 1 … min(N − 1, D).

    NaN where x is not finite. Roy & Vetterli, The effective rank (2007); RankMe, arXiv 2210.02885 (there without
    centring)."""
    if not bool(x.isfinite().all()):
        return x.new_tensor(float("nan"), dtype=torch.float32)
    s = torch.linalg.svdvals((x - x.mean(0)).float())
    p = s / s.sum().clamp_min(1e-12)
    return (-torch.special.xlogy(p, p.clamp_min(1e-12)).sum()).exp()


def position_std(x: Float[Tensor, "B N D"]) -> Float[Tensor, ""]:
    """Mean over positions and dimensions of the standard deviation over clips: 0 where features know only where."""
    return x.float().std(0, correction=0).mean()


def usage_perplexity(usage: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """exp(entropy) of each row's shares, as a part of the slots in use: 1 where all are used alike."""
    p = usage.float() / usage.sum(1, keepdim=True).clamp_min(1e-12)
    entropy = -torch.special.xlogy(p, p.clamp_min(1e-12)).sum(1)
    return (entropy.exp() / (usage > 0).sum(1).clamp_min(1)).mean()


def collapse_alarm(metrics: dict[str, float], width: int) -> str | None:
    """A sentence when the monitors say collapse: not finite, features of few dimensions or alike for all clips, a gate
    that has stopped choosing."""
    if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
        return f"{', '.join(bad)} not finite"
    if metrics.get("position_std", 1.0) < 0.02:
        return f"features hardly differ between clips (std {metrics['position_std']:.3f}): collapsed"
    if metrics.get("effective_rank", float(width)) < 2.0:
        return f"effective rank {metrics['effective_rank']:.1f} of {width}: collapsed to a line"
    if metrics.get("skill", 0.0) > 0.98:
        return f"skill {metrics['skill']:.2f}: the targets are constant, or hidden content leaks"
    if not 0.002 <= metrics.get("boundary_rate", 0.5) <= 0.98:
        return f"boundary rate {metrics['boundary_rate']:.3f}: the gate cuts always or never, whatever the content"
    return None
