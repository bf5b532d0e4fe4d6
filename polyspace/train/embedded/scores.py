"""What a clip feature tells of the object's turns: linear probes on clips held out of pretraining."""

from jaxtyping import Float
from torch import Tensor

from polyspace.train.embedded.clips import BINS, turns_bin
from polyspace.train.probing import Part, linear_probe
from polyspace.utils.monitor import effective_rank

LABELLED, CHOSEN = 512, 128  # held-out clips that the probe is fitted and chosen on; the others test it


def turn_scores(pooled: Float[Tensor, "N D"], turns: Float[Tensor, " N"]) -> dict[str, float]:
    """Accuracy of turns (signed), speed and sense of rotation; the features' rank."""
    return {
        "turns_probe": probe(pooled, turns_bin(turns), BINS),
        "speed_probe": probe(pooled, turns_bin(turns.abs()) - BINS // 2, BINS // 2),
        "sense_probe": probe(pooled, (turns > 0).long(), 2),
        "effective_rank": effective_rank(pooled).item(),
    }


def probe(pooled: Float[Tensor, "N D"], label: Tensor, classes: int) -> float:
    """Test accuracy of a linear probe on mean tokens."""
    sizes = [LABELLED, CHOSEN, len(label) - LABELLED - CHOSEN]
    fit, choose, test = (Part(*rows) for rows in zip(pooled.split(sizes), label.split(sizes), strict=True))
    return linear_probe(fit, choose, test, classes)
