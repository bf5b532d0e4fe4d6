"""The supervised bound: the same encoder trained on labels, mean of tokens and a linear head."""

import torch.nn.functional as F
from torch import nn

from polyspace.data.batch import VideoBatch
from polyspace.losses.auxiliaries import ratio_loss
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.phase import Phase, StepOutput


class SupervisedPhase(Phase):
    """Cross entropy of a linear head on the mean token; the tokenizer keeps its ratio loss."""

    def __init__(
        self, encoder: HNetViT | TubeletViT, classes: int, ratio_weight: float = 0.03, cells_per_chunk: float = 5.0
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, classes)
        self.ratio_weight, self.cells_per_chunk = ratio_weight, cells_per_chunk

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.video is not None and batch.label is not None
        encoded = self.encoder.encode(batch.video)
        logits = self.head(encoded.pooled())
        loss = F.cross_entropy(logits, batch.label)
        right = (logits.argmax(1) == batch.label).float().mean()
        metrics = {
            "cross_entropy": loss.detach(),
            "accuracy": right.detach(),
            "chunks": encoded.valid.sum(1).float().mean(),
        }
        r = encoded.routing
        if r is not None and r.gated:
            loss = loss + self.ratio_weight * ratio_loss(r.boundary, r.prob, r.judged, self.cells_per_chunk)
        return StepOutput(loss, metrics)
