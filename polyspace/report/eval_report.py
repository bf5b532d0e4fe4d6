"""The files of an evaluation: JSON, Markdown, and pictures, all from one result dict."""

from pathlib import Path
from typing import Any

from polyspace.report.figures import accuracy_figure, cka_figure, confusion_figure, save_figure
from polyspace.utils.checkpoint_io import write_sealed, write_text
from polyspace.utils.log import table


def data_name(result: dict[str, Any]) -> str:
    """What was evaluated on, with a word where the clips are generated and only the layout is the data set's."""
    name = f"{result['dataset']} {result['split']}"
    return f"generated clips, {name} layout" if result["generated"] else name


def stand_in_notice(result: dict[str, Any]) -> str | None:
    """The watermark's words, or None."""
    if not result["stand_ins"]:
        return None
    names = ", ".join(result["stand_ins"])
    return f"STAND-IN: {names} are replaced by `identity`, which has learned nothing. No number here is about a model."


def head_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, s in result["heads"].items():
        params = result["params"][name]
        rows.append(
            [
                name,
                f"{s['top1']:.3f}",
                _interval(s["top1_ci"]),
                f"{s['top5']:.3f}",
                f"{s['mean_class']:.3f}",
                f"{params:,}",
            ]
        )
    return rows


HEAD_COLUMNS = ["head", "top-1", "95 % interval", "top-5", "mean class", "trained parameters"]
TRANSLATION_COLUMNS = ["space", "R²", "cosine", "debiased CKA", "CKA", "kNN overlap"]
RETAINED_COLUMNS = [
    "space",
    "true features",
    "same probe, translated",
    "retained",
    "loss, 95 % interval",
    "probe retrained",
]
RETAINED_WORDS = (
    "Top-1 of a linear probe that was fitted on a teacher's true training features, read on its true features and on "
    "the student's translations; beside it a probe fitted on translations. The student's own probe stands first: a "
    "translation can hardly know more than the student does. No share is given where a probe on true features is not "
    "shown to be better than always naming the largest class."
)
HEADS_COLUMNS = [
    "space",
    "classes",
    "same answer",
    "95 % interval",
    "by chance",
    "top-1, true",
    "top-1, translated",
    "loss, 95 % interval",
]
HEADS_WORDS = (
    "Each teacher's own classifier, unchanged, on its true features and on translations: how often both get the same "
    "answer, and how often they would if they had nothing to do with each other; top-1 where it knows these classes."
)
COST_WORDS = (
    "FLOPs are of one clip, 2 a multiply-add, attention included. Latency is of one call with so many clips, on this "
    "machine (no 95th percentile of fewer than 20 calls). Memory is weights and the most tensors alive at once, "
    "without the input, and on a CPU without what kernels take within themselves. Several backbones run one after the "
    "other: they share activation memory and add up their weights."
)


def translation_rows(result: dict[str, Any]) -> list[list[str]]:
    keys = ("r2", "cosine", "cka_debiased", "cka", "knn_overlap")
    return [
        [name, *(f"{scores[k]:.3f}" if k in scores else "–" for k in keys)]
        for name, scores in result["translation"].items()
    ]


def retained_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, r in (result["retained"] or {}).items():
        if "translated" not in r:
            rows.append([name, f"{r['true']:.3f}", *["–"] * 4])
            continue
        share = "–" if r["retained"] is None else f"{r['retained']:.1%}"
        rows.append(
            [name, f"{r['true']:.3f}", f"{r['translated']:.3f}", share, _signed(r["loss_ci"]), f"{r['retrained']:.3f}"]
        )
    return rows


def teacher_head_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, r in result["teacher_heads"].items():
        row = [name, str(r["classes"]), f"{r['agreement']:.3f}", _interval(r["agreement_ci"]), f"{r['by_chance']:.3f}"]
        scored = "true" in r
        row += [f"{r['true']:.3f}", f"{r['translated']:.3f}", _signed(r["loss_ci"])] if scored else ["–"] * 3
        rows.append(row)
    return rows


def _interval(ends: list[float]) -> str:
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def _signed(ends: list[float]) -> str:
    return f"[{ends[0]:+.3f}, {ends[1]:+.3f}]"


def cost_columns(result: dict[str, Any]) -> list[str]:
    measured = [f"{what}, batch {size}" for size in _batches(result) for what in ("p50 (ms)", "p95 (ms)", "peak (MiB)")]
    return ["what", "GFLOP a clip", "parameters (M)", *measured]


def _batches(result: dict[str, Any]) -> list[str]:
    return list(result["cost"]["student"].get("batches", ()))


def cost_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, c in result["cost"].items():
        row = [name, f"{c['flops'] / 1e9:.4g}", f"{c['params'] / 1e6:.3g}"]
        for size in _batches(result):
            m = c["batches"][size]
            p95 = "–" if m["p95_s"] is None else f"{1e3 * m['p95_s']:.2f}"
            row += [f"{1e3 * m['p50_s']:.2f}", p95, f"{m['peak_mib']:.3g}"]
        rows.append(row)
    return rows


def difference_line(result: dict[str, Any]) -> str:
    d = result["difference"]
    return (
        f"Fusion − student only, paired over clips: {d['top1']:+.3f} top-1, 95 % interval {_signed(d['ci'])}: "
        f"{d['verdict']}."
    )


def gates_line(result: dict[str, Any]) -> str:
    gates = (f"{name} {mean:+.3f} ± {result['gates_std'][name]:.3f}" for name, mean in result["gates"].items())
    return "Gates, mean and standard deviation over held-out training clips: " + ", ".join(gates) + "."


def choice_line(result: dict[str, Any]) -> str:
    c = result["choice"]
    return (
        f"Chosen on held-out training clips: {c['head']} (difference {c['top1']:+.3f}, 95 % interval "
        f"{_signed(c['ci'])})."
    )


def clips_line(result: dict[str, Any]) -> str:
    c = result["clips"]
    seen = f" WARNING: {c['seen_in_training']} of them were in training." if c["seen_in_training"] else ""
    trained = result["training_clips"]
    return (
        f"{c['evaluated']} of {c['listed']} clips scored ({c['failed']} unreadable, {c['missing']} missing, "
        f"{c['unlabelled']} unlabelled). Chance {result['chance']:.3f}. Heads trained on "
        f"{trained['train']} clips, epoch chosen on {trained['held_out']} held out.{seen}"
    )


def write_eval_files(result: dict[str, Any], folder: Path) -> None:
    """eval_{dataset}_{split}.{json,md} and its pictures in `folder`."""
    stem = f"eval_{result['dataset']}_{result['split']}"
    marked = bool(result["stand_ins"])
    title = f"{data_name(result)}, fusion head"
    figures = {
        "confusion": confusion_figure(result["confusion"], result["classes"], title),
        "accuracy": accuracy_figure(result["heads"], result["chance"]),
    }
    if result["cka"] is not None:
        figures["cka"] = cka_figure(result["cka"]["spaces"], result["cka"]["debiased"])
    for name, figure in figures.items():
        save_figure(figure, folder / f"{stem}_{name}.png", marked)
    write_text(folder / f"{stem}.md", "\n".join(_markdown(result, stem)) + "\n")
    write_sealed(folder / f"{stem}.json", result)


def _markdown(result: dict[str, Any], stem: str) -> list[str]:
    lines = [f"# {data_name(result)}", ""]
    notice = stand_in_notice(result)
    if notice:
        lines += [f"> **{notice}**", ""]
    lines += [clips_line(result), "", *table(head_rows(result), HEAD_COLUMNS), "", difference_line(result), ""]
    lines += [
        gates_line(result),
        "",
        choice_line(result),
        "",
        f"![accuracy]({stem}_accuracy.png)",
        "",
        f"![confusion]({stem}_confusion.png)",
        "",
    ]
    lines += [f"## Translated features ({result['converter_kind']}) against true ones", ""]
    lines += [*table(translation_rows(result), TRANSLATION_COLUMNS), ""]
    if result["cka"] is not None:
        lines += [f"![debiased CKA between spaces, true and translated]({stem}_cka.png)", ""]
    lines += ["## Accuracy that is left of each teacher", ""]
    if result["retained"] is None:
        lines += ["Not measured: the converters' training features are not there, or have no labels.", ""]
    else:
        lines += [RETAINED_WORDS, "", *table(retained_rows(result), RETAINED_COLUMNS), ""]
    if result["teacher_heads"]:
        lines += ["## Teachers' own classifiers", "", HEADS_WORDS, ""]
        lines += [*table(teacher_head_rows(result), HEADS_COLUMNS), ""]
    lines += ["## Cost", "", COST_WORDS, ""]
    lines += [*table(cost_rows(result), cost_columns(result)), "", "## Per class", ""]
    rows = [
        [r["class"], str(r["clips"]), f"{r['fusion']:.3f}", f"{r['student only']:.3f}"] for r in result["per_class"]
    ]
    lines += [*table(rows, ["class", "clips", "fusion top-1", "student only top-1"]), ""]
    trained = [
        f"- {n}: {s['checkpoint']} ({s['backend']}), {s['dim']} dims, trained: {s['trained']}"
        for n, s in result["spaces"].items()
    ]
    return [*lines, "## Backbones", "", *trained, "", f"Command: `{' '.join(result['run']['argv'])}`"]
