import pytest
import torch

from polyspace.models.heads import AttentiveHead
from polyspace.train.probing import Part, attentive_probe, linear_probe


def blobs(n: int, seed: int, noise: float = 0.3) -> Part:
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (n,), generator=g)
    centres = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    pooled = centres[label] + noise * torch.randn(n, 4, generator=g)
    tokens = 0.3 * torch.randn(n, 5, 8, generator=g)
    where = torch.randint(0, 5, (n,), generator=g)
    tokens[torch.arange(n), where, label] += 3.0  # one token of five says it
    return Part(pooled, label, tokens, torch.ones(n, 5, dtype=torch.bool))


def test_probes_learn_what_is_there_and_nothing_else():
    fit, choose, test = blobs(150, 0), blobs(100, 1), blobs(200, 2)
    assert linear_probe(fit, choose, test, 3) > 0.9
    assert attentive_probe(fit, choose, test, 3, epochs=80) > 0.9
    blind = Part(torch.randn(200, 4), test.label)
    assert linear_probe(Part(torch.randn(150, 4), fit.label), choose, blind, 3) < 0.5


def test_the_test_part_decides_nothing():
    fit, choose, test = blobs(60, 0, 1.0), blobs(60, 1, 1.0), blobs(200, 2, 1.0)
    half = Part(test.pooled[:100], test.label[:100])
    rest = Part(test.pooled[100:], test.label[100:])
    whole = linear_probe(fit, choose, test, 3)
    assert whole == pytest.approx((linear_probe(fit, choose, half, 3) + linear_probe(fit, choose, rest, 3)) / 2)


def test_padding_tokens_are_not_looked_at():
    head, tokens = AttentiveHead(8, 3, heads=2), torch.randn(2, 4, 8)
    valid = torch.tensor([[True, True, False, False]] * 2)
    assert torch.allclose(head(tokens, valid), head(tokens[:, :2]), atol=1e-6)
