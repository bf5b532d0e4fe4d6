"""The demo's report: one HTML page from the run's files."""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyspace.report import eval_report as shown
from polyspace.report.figures import curves_figure, strips_figure
from polyspace.report.html import Page
from polyspace.report.labels_report import labels_columns, labels_rows, labels_words

STUDENTS = {"hnet_vjepa": "H-Net V-JEPA", "vjepa2": "V-JEPA 2"}
KINDS = {"r2": "R²", "cosine": "cosine", "cka_debiased": "debiased CKA", "cka": "CKA", "knn_overlap": "kNN overlap"}


@dataclass(frozen=True)
class Shown:
    """All that the report tells of: the evaluation, the labels curve, what is said of the backbones, a clip of each
    class, the moved index, and where the student reads text the language phase and what was found by words."""

    result: dict[str, Any]
    curve: dict[str, Any]
    about: dict[str, Any]
    clips: dict[str, Any]
    moved: dict[str, Any]
    language: dict[str, Any] | None
    found: list[dict[str, Any]]


def write_demo_report(folder: Path, facts: Shown, steps: list[dict[str, Any]]) -> Path:
    """Write folder/report.html; returns its path."""
    result = facts.result
    page = Page("PolySpace demo")
    notice = shown.stand_in_notice(result)
    if notice:
        page.warning(notice)
    page.text(
        f"One small {STUDENTS[result['student']]} student serves the feature spaces of three small teachers on "
        "generated clips. Everything here was computed by the commands at the end of the page; it shows the pipeline, "
        "and says nothing about published checkpoints or real videos."
    )
    _data(page, folder, result, facts.clips)
    _backbones(page, result, facts.about)
    _converters(page, folder, result)
    _heads(page, folder, result)
    _few_labels(page, folder, facts.curve)
    if facts.language is not None:
        _language(page, folder, facts)
    _moved(page, facts.moved)
    _cost(page, result)
    page.heading("Commands")
    page.code("\n\n".join(f"# {step['seconds']:.1f} s\n{step['line']}" for step in steps))
    run = result["run"]
    env = ", ".join(f"{k} {v}" for k, v in run["environment"].items() if v is not None)
    page.text(f"polyspace {run['version']}; {env}.", small=True)
    return page.write(folder / "report.html")


def _data(page: Page, folder: Path, result: dict[str, Any], clips: dict[str, Any]) -> None:
    page.heading("Clips")
    page.text(shown.clips_line(result))
    caption = (
        "One clip a class. The object circles clockwise or counterclockwise a whole number of times; every "
        "class visits the same places, so only the order of frames tells the class."
    )
    page.image(strips_figure(clips, folder / "clips.png"), caption)


def _backbones(page: Page, result: dict[str, Any], about: dict[str, Any]) -> None:
    page.heading("Backbones")
    page.text(
        "Our own encoder and real transformers architectures at toy size, trained from nothing on other generated "
        "clips (continuous speeds instead of this task's classes), each by an objective of its own. Scores are on "
        "clips held out there, random init in brackets; skill and explained variance are 0 for the best constant and "
        "below it for a random network."
    )
    rows = []
    for name, entry in about.items():
        role = "student" if name == result["student"] else "teacher"
        before = entry["random_init"]
        scores = [
            f"{key.replace('_', ' ')} {_short(value)} (random init {_short(before[key])})"
            for key, value in entry["held_out"].items()
        ]
        rows.append([name, role, result["spaces"][name]["dim"], entry["objective"], "; ".join(scores)])
    page.table(rows, ["backbone", "role", "dims", "learned to predict", "held-out scores"])


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 9 else f"{value:.0f}"


def _converters(page: Page, folder: Path, result: dict[str, Any]) -> None:
    page.heading("Converters: student → teacher")
    page.text(
        "Mean, Procrustes and ridge come from one pass of float64 moments of the training clips; the residual MLP is a "
        "small network on top of ridge that keeps its best epoch. All choices are made on source videos held out; "
        "the mean is the control that ignores the student. CKA is biased upwards on few clips: read the debiased one."
    )
    rows = []
    for teacher, entry in result["converters_held_out"].items():
        for kind, scores in entry["kinds"].items():
            kept = " (kept)" if kind == result["converter_kind"] else ""
            rows.append([teacher, kind + kept, *(f"{scores[k]:.3f}" if k in scores else "–" for k in KINDS)])
    page.table(rows, ["teacher", "converter", *KINDS.values()])
    page.text("The kept converters on the validation clips, which nothing was chosen on:")
    page.table(shown.translation_rows(result), shown.TRANSLATION_COLUMNS)
    likeness = folder / "fusion" / f"eval_{result['dataset']}_{result['split']}_cka.png"
    if likeness.is_file():
        page.image(likeness, "Likeness of the true spaces and the translated ones on the validation clips.")
    page.text(shown.RETAINED_WORDS)
    page.table(shown.retained_rows(result), shown.RETAINED_COLUMNS)
    if result["teacher_heads"]:
        page.text(shown.HEADS_WORDS)
        page.table(shown.teacher_head_rows(result), shown.HEADS_COLUMNS)


def _heads(page: Page, folder: Path, result: dict[str, Any]) -> None:
    stem = f"eval_{result['dataset']}_{result['split']}"
    page.heading("Classification")
    page.table(shown.head_rows(result), shown.HEAD_COLUMNS)
    page.text(shown.difference_line(result))
    page.text(
        "Translated features are a function of the student's, so a fusion head can hardly know more than a head of "
        "equal size on the student alone: that control stands beside it, and equal scores are to be expected here."
    )
    page.text(f"{shown.gates_line(result)} {shown.choice_line(result)}")
    page.image(folder / "fusion" / f"{stem}_accuracy.png", "Top-1 accuracy on the validation clips.")
    lines = [json.loads(x) for x in (folder / "fusion" / "metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if not x.get("eval")]
    evals = [x for x in lines if x.get("eval")]
    losses = {
        f"{name}, training": ([x["step"] for x in steps], [x[f"loss_{key}"] for x in steps])
        for name, key in (("fusion", "fusion"), ("student only", "student"))
    } | {
        f"{name}, held out": ([x["step"] for x in evals], [x[f"held_out_loss_{key}"] for x in evals])
        for name, key in (("fusion", "fusion"), ("student only", "student"))
    }
    figure = curves_figure(losses, folder / "loss.png", x_label="update", y_label="cross entropy (nats)")
    page.image(figure, "Losses of both heads, trained side by side on the same batches.")
    page.image(folder / "fusion" / f"{stem}_confusion.png", "Confusion of the fusion head; numbers are clips.")


def _few_labels(page: Page, folder: Path, curve: dict[str, Any]) -> None:
    page.heading("With few labels")
    page.text(labels_words(curve))
    page.table(labels_rows(curve), labels_columns(curve))
    picture = folder / "labels_curve" / f"labels_curve_{curve['dataset']}_{curve['split']}.png"
    page.image(picture, "Top-1 over the number of labelled clips; bands are 95 % intervals over seeds.")


def _language(page: Page, folder: Path, facts: Shown) -> None:
    assert facts.language is not None
    page.heading("Search by words")
    first, last = facts.language["first"] or {}, facts.language["last"]
    rows = [
        [f"R@{k} {way.replace('_', ' ')}", *("–" if m is None else f"{m:.3f}" for m in (first.get(key), last.get(key)))]
        for way in ("video_to_text", "text_to_video")
        for k in (1, 5, 10)
        if (key := f"{way}_r{k}") in last
    ]
    among = last["retrieved_among"]
    known = "that no training clip has" if last["unseen_captions"] else "(training has them too)"
    page.text(
        "The student stays as it is; two small towers learned to bring a clip and its caption together. Measured "
        f"among {among} captions {known} of the validation clips; chance of R@1 is {1 / max(among, 1):.3f}."
    )
    page.table(rows, ["", "before", "after"])
    rows, strips = [], {}
    for entry in facts.found:
        for rank, clip in enumerate(entry["found"], 1):
            rows.append([entry["query"] if rank == 1 else "", str(rank), clip["caption"], f"{clip['score']:.2f}"])
        strips[_wrapped(entry["query"])] = entry["found"][0]["video"]
    page.text("Captions of the clips that were found among the validation clips, best first:")
    page.table(rows, ["asked for", "", "found", "likeness"])
    if strips:
        page.image(strips_figure(strips, folder / "found.png"), "The first clip found for each sentence.")


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 28))


def _moved(page: Page, moved: dict[str, Any]) -> None:
    page.heading("An index moved to a teacher's space")
    about = moved["translated"]
    expected = about["expected"]
    page.text(
        f"{moved['rows']} vectors of {about['from']} were converted to the space of {moved['space']}, and no video was "
        f"decoded. What to expect, from {expected['held_out']} clips that the converters were not fitted on: "
        f"{expected['lost_variance']:.1%} of the space's variance is lost, cosine {expected['cosine']:.3f}, "
        f"{expected['knn_overlap']:.1%} of the ten nearest neighbours are the same."
    )


def _cost(page: Page, result: dict[str, Any]) -> None:
    page.heading("Cost")
    page.text(shown.COST_WORDS)
    page.table(shown.cost_rows(result), shown.cost_columns(result))
