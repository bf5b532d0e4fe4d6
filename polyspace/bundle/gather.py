"""A bundle from what the commands wrote, and `polyspace bundle`, which writes it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field
from typing_extensions import TypedDict

from polyspace.bundle.files import load_bundle, save_bundle
from polyspace.bundle.parts import Bundle, student_card
from polyspace.config import Config, parse, run_command
from polyspace.models.backbones import BackboneCard, describe_all
from polyspace.models.spaces.converters import ConverterBank, load_converters
from polyspace.models.vjepa.saved import find_encoder, read_encoder
from polyspace.train.alignment.translation import held_out_scores
from polyspace.train.train_fusion import load_heads
from polyspace.utils.checkpoint_io import read_json, sha256_file, try_writing
from polyspace.utils.errors import UserError
from polyspace.utils.log import say, warn
from polyspace.utils.reading import check_form

HEADS = ("fusion", "student")
SCORES = ("heads", "difference", "translation", "retained", "cost")  # of an evaluation, kept in the bundle


class BundleConfig(Config):
    converters: Path | None = Field(None, description="file written by train-converter")
    tokens: Path | None = Field(None, description="file written by train-converter --tokens")
    fusion: Path | None = Field(None, description="file written by train-fusion")
    run: Path | None = Field(None, description="folder of a main.py run: encoder, language, probe")
    student: str | None = Field(None, description="where the student's weights lie, if not where they were")
    evaluation: Path | None = Field(None, description="eval_….json, for the model card")
    with_student: bool = Field(True, description="copy the student's weights, too (never those of the hub)")
    out: Path = Field(description="folder of the bundle")


def gather(
    *,
    converters: Path | None = None,
    tokens: Path | None = None,
    fusion: Path | None = None,
    run: Path | None = None,
    student: str | None = None,
    num_chunks: int | None = None,
    metrics: dict[str, Any] | None = None,
) -> Bundle:
    """A bundle from what the commands wrote: `converters` and `tokens` of train-converter (the latter with --tokens),
    `fusion` of train-fusion, `run` the folder of main.py (its encoder is the student unless the converters name
    another). `student`: where the converters' student lies now, if not where it was; `num_chunks`: a run's budget of
    tokens (converters bring theirs). UserError where parts don't fit.
    """
    if fusion is not None and converters is None:
        raise UserError("a fusion head needs its converters: give both files")
    bank, about = load_converters(converters) if converters is not None else (None, None)
    token_bank, token_about = load_converters(tokens) if tokens is not None else (None, None)
    for path, known, wants in ((converters, about, False), (tokens, token_about, True)):
        if known is not None and bool(known.get("tokens")) != wants:
            raise UserError(f"{path} converts {'clip features' if wants else 'tokens'}")
    first = about or token_about
    card = _student(first, run, student, num_chunks)
    spaces: dict[str, Any] = {card.name: card.about()}
    for path, known in ((converters, about), (tokens, token_about)):
        if known is not None:
            student_card(card.name, known["spaces"][card.name], card.checkpoint, str(path))
            spaces |= {name: space for name, space in known["spaces"].items() if name != card.name}
    sampling, views = _sampling(first, card, (converters, tokens), (about, token_about))
    made = Bundle(card, sampling, spaces, bank, tokens=token_bank, metrics=metrics or {}, views=views)
    if about is not None:
        made = replace(made, kind=about["kind"], held_out=held_out_scores(about))
    if token_about is not None:
        made = replace(made, tokens_held_out=held_out_scores(token_about))
    if fusion is not None:
        assert bank is not None and converters is not None
        made = _with_heads(made, fusion, bank, converters)
    return replace(made, folders=_phases(run, card)) if run is not None else made


def _sampling(first: Any, card: BackboneCard, paths: Any, abouts: Any) -> tuple[str, tuple[int, int]]:
    """How frames are sampled, and (windows, crops) that are averaged: as for the features that converters were fitted
    on, which must agree; of a run as its encoder was pretrained."""
    if first is None:
        place = find_encoder(Path(card.checkpoint))
        assert place is not None
        return read_encoder(place)["input"].get("sampling", "segments"), (1, 1)
    found = [(a.get("sampling", "segments"), tuple(a.get("views", (1, 1)))) for a in abouts if a is not None]
    if len(set(found)) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} were fitted on frames that were sampled in other ways")
    sampling, views = found[0]
    if views != (1, 1):
        warn(f"converters were fitted on means of {views[0]} windows and {views[1]} crops; encode takes the middle one")
    return sampling, (int(views[0]), int(views[1]))


def _student(about: dict[str, Any] | None, run: Path | None, given: str | None, num_chunks: int | None) -> BackboneCard:
    if about is None:
        if run is None:
            raise UserError("a bundle needs converters, or a run of main.py with an encoder")
        if find_encoder(run) is None:
            raise UserError(f"{run} holds no encoder (no encoder.json there or in its pretrain/)")
        if given is not None:
            raise UserError(f"the student of {run} is its own encoder; leave out {given}")
        return house_card(run, num_chunks)
    name = about["student"]
    known = about["spaces"][name]
    return student_card(name, known, given or known["checkpoint"], "the converters' file")


def house_card(folder: Path, num_chunks: int | None = None) -> BackboneCard:
    """The card of an encoder of our own, for clips as long as those it learned from."""
    place = find_encoder(folder)
    assert place is not None
    learned = (read_encoder(place).get("input") or {}).get("frames", 16)
    options = [f"hnet_vjepa={place}"]
    return describe_all("hnet_vjepa", [], learned, options, num_chunks=num_chunks)["hnet_vjepa"]


def _with_heads(made: Bundle, fusion: Path, bank: ConverterBank, converters: Path) -> Bundle:
    heads, about = load_heads(fusion, bank)
    if about["converters_sha256"] != sha256_file(converters):
        raise UserError(f"{fusion} was trained with other converters than {converters}")
    for name in set(heads.heads) - set(HEADS):  # controls are for reports
        del heads.heads[name]
        del heads.banks[name]
    scores = {"fusion_held_out": about["held_out"]} | made.metrics
    return replace(made, heads=heads, classes=about["classes"], choice=about["choice"], metrics=scores)


def _phases(run: Path, card: BackboneCard) -> dict[str, Path]:
    """Language and probe of a run, where it has them and they read this student; a warning says which do not."""
    if card.backend != "polyspace":
        raise UserError(f"language and probe of {run} read an encoder of our own, not {card.name}: leave out the run")
    found = {}
    for name in ("language", "probe"):
        if not (run / name / f"{name}.json").is_file():
            continue
        about = read_json(run / name / f"{name}.json", name, dict[str, Any])
        if (run / name / "encoder.json").is_file():
            warn(f"{name} of {run} is left out: its encoder learned on, and is no longer the student")
        elif about.get("encoder_sha256") != card.digest:
            warn(f"{name} of {run} is left out: it was trained on another encoder than {card.checkpoint}")
        elif about.get("pooling") == "saliency":
            warn(f"{name} of {run} is left out: it needs saliency labels of every clip")
        else:
            found[name] = run / name
    return found


class Evaluation(TypedDict):
    """What the model card needs of an evaluation."""

    student: str
    classes: list[str]
    choice: dict[str, Any]
    spaces: dict[str, dict[str, Any]]
    dataset: str
    split: str
    generated: bool
    clips: Any
    chance: Any


def _evaluation(path: Path, made: Bundle) -> dict[str, Any]:
    """What the model card tells of an evaluation; UserError where it is another bundle's."""
    found = read_json(path, "evaluation")
    if not isinstance(found, dict) or found.get("format") != "polyspace.eval":
        raise UserError(f"{path} is not an evaluation (eval_….json)")
    check_form(found, Evaluation, path, "evaluation")
    same = found["student"] == made.card.name and found["classes"] == made.classes and found["choice"] == made.choice
    digests = {name: space["digest"] for name, space in made.spaces.items()}
    if not same or any(digests.get(name) != space.get("digest") for name, space in found["spaces"].items()):
        raise UserError(f"{path} evaluates other weights or heads than those given")
    kept = {key: found[key] for key in SCORES if found.get(key) is not None}
    return kept | {key: found[key] for key in ("dataset", "split", "generated", "clips", "chance")}


def main(argv: Sequence[str]) -> int:
    config = parse(
        BundleConfig,
        argv,
        prog="polyspace bundle",
        about="Student, converters and heads in one folder with a model card; polyspace.load reads it.",
        example="polyspace bundle --converters checkpoints/converters/converters_ep10.pt "
        "--fusion checkpoints/fusion/fusion_ep5.pt --out bundle",
    )
    made = gather(
        converters=config.converters,
        tokens=config.tokens,
        fusion=config.fusion,
        run=config.run,
        student=config.student,
    )
    if config.evaluation is not None:
        made = replace(made, metrics=made.metrics | {"evaluation": _evaluation(config.evaluation, made)})
    try_writing(config.out)
    save_bundle(made, config.out, config.with_student)
    load_bundle(config.out)  # what can't be read again was not worth writing
    say(f"{made.card.name} and {len(made.spaces) - 1} more spaces -> {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
