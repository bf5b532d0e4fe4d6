"""What a bundle holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyspace.models.backbones import BackboneCard
from polyspace.models.language import TextEncoder, TwoTowers
from polyspace.models.spaces.converters import ConverterBank
from polyspace.train.alignment.fusion_phase import HeadSet
from polyspace.train.downstream.saved_probe import Probe, load_probe
from polyspace.train.language_align import load_language


@dataclass(frozen=True)
class Bundle:
    """What a folder holds: the student's card, and what there is beside it.

    `spaces`: what is known of each space by name (dim, grid, checkpoint, stand-in or not), the student's first;
    `held_out`: scores of the converters on clips that they were not fitted on; `tokens`: converters of single tokens;
    `heads`: the fusion head and its student-only control over `classes`, `choice` which of them held-out clips chose;
    `folders`: where language and probe lie; `metrics`: further results, for the model card.
    """

    card: BackboneCard
    sampling: str = "segments"
    spaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    converters: ConverterBank | None = None
    kind: str | None = None
    held_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: ConverterBank | None = None
    tokens_held_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    heads: HeadSet | None = None
    classes: list[str] = field(default_factory=list)
    choice: dict[str, Any] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def language(self) -> tuple[TwoTowers, TextEncoder] | None:
        return load_language(self.folders["language"]) if "language" in self.folders else None

    def probe(self) -> Probe | None:
        return load_probe(self.folders["probe"]) if "probe" in self.folders else None
