"""What a bundle holds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyspace.models.backbones import BackboneCard, describe_all
from polyspace.models.spaces.converters import ConverterBank
from polyspace.train.alignment.fusion_phase import HeadSet
from polyspace.utils.errors import UserError
from polyspace.utils.reading import reads


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
    views: tuple[int, int] = (1, 1)  # windows and crops that the converters' features are means of


def student_card(name: str, known: Mapping[str, Any], place: str, where: str) -> BackboneCard:
    """The card of a student as `known` in a file of `where`, from weights in `place`: the same in all that features
    depend on, or a UserError says in what not."""
    with reads(where, "what is known of the student by"):
        return _student_card(name, known, place, where)


def _student_card(name: str, known: Mapping[str, Any], place: str, where: str) -> BackboneCard:
    revision, stand_in = known["revision"], known["backend"] == "identity"
    at = "" if stand_in or revision == "local" or Path(place).expanduser().is_dir() else f"@{revision}"
    options = [] if stand_in else [f"{name}={place}{at}"]
    card = describe_all(name, [], known["plan"]["frames"], options, num_chunks=known.get("num_chunks"))[name]
    for key, value in json.loads(json.dumps(card.identity())).items():
        recorded = {k: v for k, v in known[key].items() if k != "source"} if key == "plan" else known.get(key)
        if recorded != value:
            words = {"digest": "weights", "plan": "frames or preprocessing"}
            raise UserError(f"{where} belongs to other {words.get(key, key)} of {name} than those in {place}")
    return card
