"""Backbones by name. A new one is a file with a function that returns its card, and a line in BACKBONES."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from polyspace.models.backbones import hf, hnet_vjepa, identity
from polyspace.models.backbones.base import Backbone, BackboneCard
from polyspace.models.backbones.checkpoints import WeightsUnavailable
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.log import banner, warn

# name -> card(checkpoint, revision, frames); hnet_vjepa also takes num_chunks
BACKBONES: dict[str, Callable[..., BackboneCard]] = {
    "vjepa2": partial(hf.describe, "vjepa2"),
    "videomae": partial(hf.describe, "videomae"),
    "timesformer": partial(hf.describe, "timesformer"),
    "vivit": partial(hf.describe, "vivit"),
    "hnet_vjepa": hnet_vjepa.describe,
    "identity": lambda checkpoint, revision, frames: identity.describe("identity", frames),
}

__all__ = ["BACKBONES", "Backbone", "BackboneCard", "WeightsUnavailable", "describe_all"]


def parse_checkpoints(items: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """`NAME=PATH_OR_ID` or `NAME=ID@REVISION` -> {name: (checkpoint, revision)}."""
    out: dict[str, tuple[str, str | None]] = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not value:
            raise UserError(f"--checkpoint {item}: expected NAME=PATH_OR_ID")
        if name not in names:
            raise UserError(
                f"--checkpoint {item}: {name} is neither student nor teacher here{did_you_mean(name, names)}"
            )
        path, at, revision = value.rpartition("@")
        out[name] = (path, revision) if at and path and not Path(value).is_dir() else (value, None)
    return out


def describe_all(
    student: str,
    teachers: Sequence[str],
    frames: int,
    checkpoints: Sequence[str] = (),
    strict: bool = False,
    num_chunks: int | None = None,
) -> dict[str, BackboneCard]:
    """Cards of student and teachers, in that order. Missing weights give the identity stand-in with a banner, or a
    UserError under `strict`; a mistyped name is always a UserError. `num_chunks` is hnet_vjepa's budget of tokens."""
    names = [student, *teachers]
    for flag, name in [("--student", student), *(("--teachers", t) for t in teachers)]:
        if name not in BACKBONES:
            raise UserError(f"{flag} {name} is unknown{did_you_mean(name, BACKBONES)}")
    if len(set(names)) != len(names):
        raise UserError(f"--teachers {' '.join(teachers)}: each backbone once, and not the student {student}")
    places = parse_checkpoints(checkpoints, names)
    if num_chunks is not None and "hnet_vjepa" not in names:
        raise UserError(f"--num_chunks {num_chunks}: only hnet_vjepa takes a budget of tokens")
    more = {"hnet_vjepa": {} if num_chunks is None else {"num_chunks": num_chunks}}
    cards = {name: _describe(name, places, frames, strict, more.get(name, {})) for name in names}
    _announce(cards)
    planned = cards[student].plan.frames
    if planned != frames:
        warn(f"--frames {frames}: {student} is built for {planned} frames and gets {planned}")
    return cards


def _describe(
    name: str, places: Mapping[str, tuple[str, str | None]], frames: int, strict: bool, more: Mapping[str, int]
) -> BackboneCard:
    checkpoint, revision = places.get(name, (None, None))
    try:
        card = BACKBONES[name](checkpoint, revision, frames, **more)
    except WeightsUnavailable as error:
        if checkpoint is not None:  # weights that were named must be these weights
            raise UserError(f"--checkpoint {name}={checkpoint}: {error}") from error
        if strict:
            raise UserError(f"--strict: {name} has no weights: {error}") from error
        return identity.describe(name, frames, why=str(error))
    if strict and card.backend == "identity":
        raise UserError(f"--strict: {name} is a stand-in, not a trained backbone")
    return card


def _announce(cards: Mapping[str, BackboneCard]) -> None:
    stand_ins = [card for card in cards.values() if card.backend == "identity"]
    if stand_ins:
        lines = ["STAND-IN FEATURES: these backbones are replaced by `identity`, which has learned nothing:"]
        lines += [f"  {card.name}: {card.why or 'asked for by name'}" for card in stand_ins]
        lines += ["The pipeline runs, but its numbers say nothing about these models.",
                  "Give weights with --checkpoint NAME=PATH_OR_ID; --strict makes this an error."]  # fmt: skip
        banner(lines)
