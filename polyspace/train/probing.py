"""Frozen features to a number: linear and attentive probes whose settings are chosen on a validation part."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polyspace.models.heads import AttentiveHead

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


@dataclass(frozen=True)
class Part:
    """Features of some labelled clips: pooled (N,D), label (N,), and for attentive probes tokens (N,M,D), valid."""

    pooled: Tensor
    label: Tensor
    tokens: Tensor | None = None
    valid: Tensor | None = None


@dataclass(frozen=True)
class LinearProbe:
    """logits = (x − mean)/std · weight + bias, in float64."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        return (x.double() - self.mean) / self.std @ self.weight + self.bias


def fit_linear_probe(fit: Part, choose: Part, classes: int) -> LinearProbe:
    """Ridge regression to one-hot labels on standardised features; the penalty with the best accuracy on `choose`
    (ties: the larger), fitted on `fit` alone."""
    mean, std = fit.pooled.double().mean(0), fit.pooled.double().std(0).clamp_min(1e-6)
    x = (fit.pooled.double() - mean) / std
    y = F.one_hot(fit.label, classes).double()
    values, vectors = torch.linalg.eigh(x.T @ x)
    projected = vectors.T @ (x.T @ (y - y.mean(0)))
    best, kept = -1.0, None
    for penalty in PENALTIES:
        probe = LinearProbe(mean, std, vectors @ (projected / (values + penalty)[:, None]), y.mean(0))
        score = accuracy(probe(choose.pooled), choose.label)
        if score >= best:
            best, kept = score, probe
    assert kept is not None
    return kept


def linear_probe(fit: Part, choose: Part, test: Part, classes: int) -> float:
    """Test accuracy of `fit_linear_probe`."""
    return accuracy(fit_linear_probe(fit, choose, classes)(test.pooled), test.label)


def attentive_probe(
    fit: Part, choose: Part, test: Part, classes: int, seed: int = 0, epochs: int = 40, lr: float = 1e-3
) -> float:
    """Test accuracy of a one-block attentive probe, AdamW, at the epoch that is best on `choose`."""
    torch.manual_seed(seed)
    assert fit.tokens is not None
    head = AttentiveHead(fit.tokens.shape[-1], classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr, weight_decay=0.05)
    mean, std = _moments(fit)
    best, result = -1.0, 0.0
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 2 * (1 - epoch / epochs))
        head.train()
        for rows in torch.randperm(len(fit.label)).split(64):
            loss = F.cross_entropy(_logits(head, fit, rows, mean, std), fit.label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            score = _score(head, choose, mean, std)
            if score >= best:
                best, result = score, _score(head, test, mean, std)
    return result


def accuracy(logits: Float[Tensor, "N K"], label: Tensor) -> float:
    return (logits.argmax(1) == label).double().mean().item()


def _moments(part: Part) -> tuple[Tensor, Tensor]:
    assert part.tokens is not None
    rows = part.tokens.flatten(0, 1) if part.valid is None else part.tokens[part.valid]
    return rows.mean(0), rows.std(0).clamp_min(1e-6)


def _logits(head: AttentiveHead, part: Part, rows: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    assert part.tokens is not None
    return head((part.tokens[rows] - mean) / std, None if part.valid is None else part.valid[rows])


def _score(head: AttentiveHead, part: Part, mean: Tensor, std: Tensor) -> float:
    logits = [_logits(head, part, rows, mean, std) for rows in torch.arange(len(part.label)).split(256)]
    return accuracy(torch.cat(logits), part.label)
