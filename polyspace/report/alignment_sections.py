"""Sections about alignment: converters, heads, labels curves, likeness of spaces, cost, from an evaluation's files."""

from pathlib import Path
from typing import Any

from polyspace.report import eval_report as shown
from polyspace.report.figures import (
    accuracy_figure,
    cka_figure,
    confusion_figure,
    labels_figure,
    layers_figure,
    series_figure,
)
from polyspace.report.html import Page
from polyspace.report.labels_report import labels_columns, labels_rows, labels_words
from polyspace.report.phase_sections import read_lines

KINDS = {"r2": "R²", "cosine": "cosine", "cka_debiased": "debiased CKA", "cka": "CKA", "knn_overlap": "kNN overlap"}


def evaluation_sections(page: Page, path: Path, result: dict[str, Any], command: str) -> None:
    """All that eval_{dataset}_{split}.json tells; the losses of its heads where their log lies beside it."""
    page.heading(f"Alignment: {shown.data_name(result)}")
    page.text(shown.clips_line(result))
    _converters(page, result)
    _likeness(page, result, command)
    page.subheading("Accuracy that is left of each teacher")
    if result["retained"] is None:
        page.text("Not measured: the converters' training features are not there, or have no labels.")
    else:
        page.text(shown.RETAINED_WORDS)
        page.table(shown.retained_rows(result), shown.RETAINED_COLUMNS)
    if result["teacher_heads"]:
        page.text(shown.HEADS_WORDS)
        page.table(shown.teacher_head_rows(result), shown.HEADS_COLUMNS)
    page.heading("Classification")
    _heads(page, path, result, command)
    page.heading("Cost")
    page.text(shown.COST_WORDS)
    page.table(shown.cost_rows(result), shown.cost_columns(result))


def _converters(page: Page, result: dict[str, Any]) -> None:
    page.subheading("Converters: student to teacher")
    page.text(
        "Mean, Procrustes and ridge come from one pass of float64 moments of the training clips; the residual MLP is a "
        "small network on top of ridge that keeps its best epoch. All choices are made on source videos held out; "
        "the mean is the control that ignores the student. CKA is biased upwards on few clips: read the debiased one."
    )
    _held_out(page, result["converters_held_out"], result["converter_kind"])
    page.text("The kept converters on the clips of this split, which nothing was chosen on:")
    page.table(shown.translation_rows(result), shown.TRANSLATION_COLUMNS)


def _held_out(page: Page, held_out: dict[str, Any], chosen: str) -> None:
    """Every converter's scores on clips that it was not fitted on."""
    rows = []
    for teacher, entry in held_out.items():
        for kind, scores in entry["kinds"].items():
            kept = " (kept)" if kind == chosen else ""
            rows.append([teacher, kind + kept, *(f"{scores[k]:.3f}" if k in scores else "–" for k in KINDS)])
    page.table(rows, ["teacher", "converter", *KINDS.values()])


def _likeness(page: Page, result: dict[str, Any], command: str) -> None:
    """CKA between spaces, and between layers where it was measured."""
    name = f"{result['dataset']}_{result['split']}"
    if result["cka"] is not None:
        cka = result["cka"]
        picture = cka_figure(cka["spaces"], cka["debiased"])
        words = "Likeness of the true spaces and the translated ones on these clips (1: the same up to rotation)."
        page.figure(picture, words, command, cka, f"cka_{name}")
    layers = result.get("layers")
    if layers is not None:
        picture = layers_figure(layers["layers"], layers["debiased"])
        words = f"Likeness of the layers of all backbones, mean tokens of {layers['clips']} clips; first layers first."
        page.figure(picture, words, command, layers, f"layers_{name}")


def _heads(page: Page, path: Path, result: dict[str, Any], command: str) -> None:
    page.table(shown.head_rows(result), shown.HEAD_COLUMNS)
    page.text(shown.difference_line(result))
    page.text(
        "Translated features are a function of the student's, so a fusion head can hardly know more than a head of "
        "equal size on the student alone: that control stands beside it, and equal scores are to be expected."
    )
    page.text(f"{shown.gates_line(result)} {shown.choice_line(result)}")
    figure = accuracy_figure(result["heads"], result["chance"])
    page.figure(figure, "Top-1 accuracy.", command, result["heads"], "heads")
    log = read_lines(path.parent / "metrics.jsonl")
    curves = {"loss_fusion": "fusion, training", "loss_student": "student only, training"}
    curves |= {"held_out_loss_fusion": "fusion, held out", "held_out_loss_student": "student only, held out"}
    losses = series_figure(log, curves, "update", "cross entropy (nats)")
    if losses is not None:
        words = "Losses of both heads, trained side by side on the same batches."
        page.figure(losses, words, command, log, "fusion_metrics")
    figure = confusion_figure(result["confusion"], result["classes"], shown.data_name(result))
    counts = {"classes": result["classes"], "counts": result["confusion"]}
    words = "Confusion of the fusion head; numbers are clips."
    page.figure(figure, words, command, counts, "confusion")


def labels_section(page: Page, result: dict[str, Any], command: str) -> None:
    """A labels curve with its intervals."""
    page.heading("With few labels")
    page.text(labels_words(result))
    page.table(labels_rows(result), labels_columns(result))
    figure = labels_figure(result["points"], result["chance"])
    words = "Top-1 over the number of labelled clips; bands are 95 % intervals over seeds."
    page.figure(figure, words, command, result["points"], "labels_curve")


def converter_section(page: Page, result: dict[str, Any], log: list[dict[str, Any]], command: str) -> None:
    """What train-converter's own report and log tell, where nothing was evaluated yet."""
    page.heading("Converters")
    _held_out(page, result["held_out"], result["kind"])
    keys = {key: key.removeprefix("held_out_r2_") for row in log for key in row if key.startswith("held_out_r2_")}
    figure = series_figure(log, keys, "update", "R², held out")
    if figure is not None:
        page.figure(figure, "Held-out R² while training.", command, log, "converter_metrics")


def moved_section(page: Page, indexes: list[tuple[Path, dict[str, Any]]]) -> None:
    """Indexes that were converted from another space, with what to expect of them."""
    for path, index in indexes:
        about = index.get("translated")
        if not about:
            continue
        expected = about["expected"]
        page.heading(f"An index moved to {index['space']}")
        page.text(
            f"{path.parent.name}: {index['rows']} vectors of {about['from']} were converted to the space of "
            f"{index['space']}, and no video was decoded. What to expect, from {expected['held_out']} clips that the "
            f"converters were not fitted on: {expected['lost_variance']:.1%} of the space's variance is lost, cosine "
            f"{expected['cosine']:.3f}, {expected['knn_overlap']:.1%} of the ten nearest neighbours are the same."
        )
