"""Heads on tokens: what weighs, and that padding doesn't."""

import pytest
import torch

from polyspace.models.heads import AttentiveHead, WeighedHead

TOKENS, VALID = (2, 5, 8), torch.tensor([[True] * 5, [True, True, False, False, False]])


@pytest.mark.parametrize("pooling", ["mean", "saliency", "cam", "attentive"])
def test_padding_changes_nothing(pooling):
    head = AttentiveHead(8, 3) if pooling == "attentive" else WeighedHead(8, 3, pooling)
    x, s = torch.randn(TOKENS), torch.rand(2, 5)
    y = x.clone()
    y[1, 2:] = 100.0
    more = () if pooling == "attentive" else (s,)
    assert torch.allclose(head(x, VALID, *more), head(y, VALID, *more), atol=1e-5)


def test_mean_pooling_is_a_linear_classifier_of_the_mean():
    head, x = WeighedHead(8, 3, "mean"), torch.randn(TOKENS)
    by_hand = torch.stack([x[0].mean(0), x[1, :2].mean(0)])
    assert torch.allclose(head(x, VALID), head.classify(by_hand), atol=1e-6)


def test_saliency_weighs_as_told_and_falls_back_to_the_mean():
    head, x = WeighedHead(8, 3, "saliency"), torch.randn(TOKENS)
    s = torch.tensor([[0.0, 3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0, 0.0]])  # the second: only padding is salient
    pooled = torch.stack([0.75 * x[0, 1] + 0.25 * x[0, 2], x[1, :2].mean(0)])
    assert torch.allclose(head(x, VALID, s), head.classify(pooled), atol=1e-5)
    with pytest.raises(ValueError, match="saliency labels"):
        head(x, VALID)


def test_cam_gives_its_weight_to_the_token_with_the_strongest_class():
    head, x = WeighedHead(8, 3, "cam"), torch.zeros(TOKENS)
    with torch.no_grad():
        x[0, 3] = 50 * head.classify.weight[1]
    weight = head.weights(x, VALID)
    assert weight[0].argmax() == 3 and weight[0, 3] > 0.9 and torch.allclose(weight.sum(1), torch.ones(2))
    assert (weight[1, 2:] == 0).all()
