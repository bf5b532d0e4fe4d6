"""Which captions retrieval is measured on, and what a known space gives."""

import pytest
import torch

from polyspace.data.batch import CachedFeatures
from polyspace.models.language import DummyTextEncoder, TwoTowers
from polyspace.train.downstream.tokens import TokenReader
from polyspace.train.language_align import RETRIEVED, LanguagePhase, Sentences, retrieved_rows


def test_retrieval_is_among_distinct_captions_that_training_does_not_have():
    text = ["a", "b", "a", "c", "d", "c"]
    assert retrieved_rows(text, {"b"}) == ([0, 3, 4], True)
    assert retrieved_rows(text, set("abcd")) == ([0, 1, 3, 4], False)
    assert len(retrieved_rows([str(i) for i in range(300)], set())[0]) == RETRIEVED


class Aligned(TwoTowers):
    """Clips whose vector is their first token, sentences whose vector is a given one."""

    def __init__(self, vectors: dict[str, torch.Tensor]) -> None:
        super().__init__(6, 6, 6, heads=2)
        self.vectors = vectors

    def embed_video(self, tokens, valid):
        return tokens[:, 0]

    def embed_text(self, text):
        return text


class Known(Sentences):
    def __init__(self, vectors: dict[str, torch.Tensor]) -> None:
        super().__init__(DummyTextEncoder(8))
        self.vectors = vectors

    def forward(self, text, device):
        return torch.stack([self.vectors[t] for t in text])


@pytest.mark.parametrize(("order", "r1", "zero_shot"), [([0, 1, 2], 1.0, 1.0), ([1, 0, 2], 1 / 3, 1 / 3)])
def test_recall_and_zero_shot_of_a_known_space(order, r1, zero_shot):
    axes = torch.eye(6)[:3]
    vectors = {"one": axes[0], "two": axes[1], "three": axes[2]}
    phase = LanguagePhase(TokenReader(None), Aligned(vectors), Known(vectors), 0.0).eval()
    clips = {"tokens": axes[order][:, None]}
    valid = torch.ones(3, 1, dtype=torch.bool)
    phase.held = CachedFeatures(clips, torch.arange(3), text=list(vectors), valid=valid)
    phase.classes, phase.templates = list(vectors), ("{}",)
    out = phase.evaluate(0)
    assert out["retrieved_among"] == 3 and out["unseen_captions"]
    assert out["video_to_text_r1"] == pytest.approx(r1) and out["text_to_video_r1"] == pytest.approx(r1)
    assert out["video_to_text_r5"] == 1.0 and out["zero_shot"] == pytest.approx(zero_shot)


def test_equal_sentences_have_equal_numbers():
    numbers = Sentences(DummyTextEncoder(8)).numbers(["a", "b", "a"])
    assert numbers[0] == numbers[2] != numbers[1]
