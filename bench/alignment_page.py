"""The page of bench/alignment.py: every figure from its JSON, in tables, with what they say.

python bench/alignment_page.py docs/results/demo.json     writes docs/results/demo.md
"""

import json
import sys
from pathlib import Path
from typing import Any

from polyspace.report import eval_report as shown
from polyspace.report.labels_report import labels_columns, labels_rows, labels_words
from polyspace.utils.checkpoint_io import write_text
from polyspace.utils.log import say, table

SCORES = {"r2": "R²", "cosine": "cosine", "cka_debiased": "debiased CKA", "knn_overlap": "kNN overlap"}


def backbone_rows(backbones: dict[str, Any]) -> list[list[str]]:
    """Objective, held-out scores and those at random init."""
    rows = []
    for name, about in backbones.items():
        s, before = about["settings"], about["random_init"]
        scores = "; ".join(f"{k.replace('_', ' ')} {v:.3f} ({before[k]:.3f})" for k, v in about["held_out"].items())
        rows.append([name, about["objective"], scores, f"{s['steps']} × {s['batch']}"])
    return rows


def converter_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Means over seeds, R² with its least and greatest value."""
    out = []
    for r in rows:
        scores = [f"{r[k]:.3f}" if k in r else "–" for k in SCORES]
        epochs = [run["best_epoch"] for run in r.get("seeds", ())]
        if epochs:
            values = [run["r2"] for run in r["seeds"]]
            scores[0] += f" ({min(values):.3f} … {max(values):.3f})"
        out.append([r["teacher"], r["converter"], *scores, ", ".join(str(e) for e in epochs if e is not None) or "–"])
    return out


def likeness_rows(cka: dict[str, Any]) -> list[list[str]]:
    return [[a, *(f"{v:.3f}" for v in row)] for a, row in zip(cka["spaces"], cka["debiased"], strict=True)]


def use_lines(found: dict[str, Any]) -> list[str]:
    """What text and the moved index are worth, a sentence each."""
    said, moved = found["language"], found["moved"]
    text = "No text: the student is not our own."
    if said is not None:
        text = (
            f"Among {said['retrieved_among']} captions of validation clips R@1 / R@5 / R@10 are "
            + " / ".join(f"{said[f'text_to_video_r{k}']:.3f}" for k in (1, 5, 10))
            + " from text to video, "
            + " / ".join(f"{said[f'video_to_text_r{k}']:.3f}" for k in (1, 5, 10))
            + " from video to text."
        )
    return [
        text,
        "",
        f"An index in the space of VideoMAE, converted from the student's: {moved['lost_variance']:.1%} of its "
        f"variance lost, cosine {moved['cosine']:.3f}, {moved['knn_overlap']:.1%} of ten nearest neighbours the same "
        f"({moved['held_out']} held-out clips).",
    ]


def page(found: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    result, machine = found["evaluation"], found["machine"]
    lines = [
        "# The demo's figures",
        "",
        f"`{found['command']}` after `{found['demo_command']}`, {found['date']}, {machine['cpus']} cores, torch "
        f"{machine['torch']}. Generated clips and toy backbones: these figures show what the pipeline measures, and "
        "say nothing about published checkpoints or real videos.",
        "",
        shown.clips_line(result),
        "",
        "## Backbones",
        "",
        "Trained from nothing by `polyspace make-backbones`; held-out scores, random init in brackets. Probes and "
        "accuracies have chance 1/18 (turns), 1/9 (speed), 1/2 (sense), 1/24 (look); skill and explained variance are "
        "0 for the best constant.",
        "",
        *table(backbone_rows(found["backbones"]), ["backbone", "learned to predict", "scores", "updates × clips"]),
        "",
        "Debiased CKA between the true spaces, and to the translated ones, validation clips:",
        "",
        *table(likeness_rows(result["cka"]), ["", *result["cka"]["spaces"]]),
        "",
        "## Converters and losses",
        "",
        "Validation clips; means over fits with other held-out videos and weights, R² with its range. Every network "
        f"starts as ridge, trains for {found['epochs']} passes and keeps its best pass by R² on held-out clips "
        "(0: ridge itself).",
        "",
        *table(converter_rows(found["converters"]), ["teacher", "converter", *SCORES.values(), "pass kept"]),
        "",
        "## Accuracy that is left of each teacher",
        "",
        shown.RETAINED_WORDS,
        "",
        *table(shown.retained_rows(result), shown.RETAINED_COLUMNS),
        "",
        shown.HEADS_WORDS,
        "",
        *table(shown.teacher_head_rows(result), shown.HEADS_COLUMNS),
        "",
        "## Heads on all labels",
        "",
        *table(shown.head_rows(result), shown.HEAD_COLUMNS),
        "",
        shown.difference_line(result),
        "",
        shown.gates_line(result),
        "",
        shown.choice_line(result),
        "",
        "## With few labels",
        "",
        labels_words(found["labels_curve"]),
        "",
        *table(labels_rows(found["labels_curve"]), labels_columns(found["labels_curve"])),
        "",
        "## Search by words, and an index that was moved",
        "",
        *use_lines(found),
        "",
        "## Cost",
        "",
        shown.COST_WORDS,
        "",
        *table(shown.cost_rows(result), shown.cost_columns(result)),
    ]
    return "\n".join(lines) + "\n"


def write_page(file: Path) -> Path:
    out = file.with_suffix(".md")
    write_text(out, page(json.loads(file.read_text())))
    return out


if __name__ == "__main__":
    say(f"-> {write_page(Path(sys.argv[1]))}")
