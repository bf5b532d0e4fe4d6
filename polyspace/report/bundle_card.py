"""The model card of a bundle, as Markdown."""

from typing import Any

from polyspace.utils.log import table

SHOWN = {"r2": "R²", "cosine": "cosine", "cka_debiased": "debiased CKA", "knn_overlap": "kNN overlap"}
USE = """```python
import polyspace

ps = polyspace.load("{folder}")
ps.encode("clip.mp4")  # ({dim},), the student's own feature
{more}```"""


def bundle_card(about: dict[str, Any], folder: str = "this folder") -> str:
    """What is inside, what it was measured on, and what is not known, from bundle.json's own words."""
    student = about["student"]
    own = about["spaces"][student["name"]]
    lines = ["---", "library_name: polyspace", "tags: [video, feature-extraction]", "---", ""]
    lines += [f"# PolySpace bundle: {student['name']}", ""]
    lines += _warnings(about)
    budget = f", {own['num_chunks']} chunks a clip" if own.get("num_chunks") else ""
    lines += [
        f"One forward of `{student['name']}` serves these spaces: {own['dim']} dims, {own['plan']['frames']} frames, "
        f"{own['pooling']} pooling{budget}; trained: {own['trained'] or 'not said'}.",
        "",
    ]
    lines += _spaces(about)
    more = [f'ps.encode("clip.mp4", space="{name}")\n' for name in list(about["held_out"])[:1]]
    more += ['ps.classify("clip.mp4")\n'] if about["heads"] or "probe" in about["phases"] else []
    lines += ["## Use", "", USE.format(folder=folder, dim=own["dim"], more="".join(more)), ""]
    lines += _heads(about)
    lines += ["## Limits", ""]
    lines += [f"- {text}" for text in _limits(about)]
    return "\n".join(lines) + "\n"


def _warnings(about: dict[str, Any]) -> list[str]:
    names = [name for name, space in about["spaces"].items() if space["backend"] == "identity"]
    if not names:
        return []
    return [f"**STAND-IN: {', '.join(names)} are replaced by `identity`, which has learned nothing.**", ""]


def _spaces(about: dict[str, Any]) -> list[str]:
    if not about["held_out"]:
        return []
    rows = []
    for name, scores in about["held_out"].items():
        space = about["spaces"][name]
        shown = [
            f"{scores[key]:.3f}" if key in scores else "–" for key in ("r2", "cosine", "cka_debiased", "knn_overlap")
        ]
        rows.append([name, str(space["dim"]), space["checkpoint"], *shown, str(scores.get("held_out", "–"))])
    columns = ["space", "dims", "checkpoint", *SHOWN.values(), "held-out clips"]
    said = f"Converters ({about['kind']}), on clips that they were not fitted on, grouped by source video:"
    return ["## Spaces", "", said, "", *table(rows, columns), ""]


def _heads(about: dict[str, Any]) -> list[str]:
    if not about["heads"]:
        return []
    choice = about["heads"]["choice"]
    low, high = choice["ci"]
    lines = ["## Classes", "", ", ".join(about["heads"]["classes"]), ""]
    lines += [
        f"Held-out clips chose the `{choice['head']}` head: fusion − student only {choice['top1']:+.3f} top-1, 95 % "
        f"interval [{low:+.3f}, {high:+.3f}].",
        "",
    ]
    found = about["metrics"].get("evaluation")
    if found:
        where = f"{found['dataset']} {found['split']}" + (", generated clips" if found["generated"] else "")
        rows = [
            [name, f"{s['top1']:.3f}", "[{:.3f}, {:.3f}]".format(*s["top1_ci"])] for name, s in found["heads"].items()
        ]
        lines += [f"On {where} ({found['clips']['evaluated']} clips, chance {found['chance']:.3f}):", ""]
        lines += [*table(rows, ["head", "top-1", "95 % interval"]), ""]
    return lines


def _limits(about: dict[str, Any]) -> list[str]:
    own = about["spaces"][about["student"]["name"]]
    limits = ["A translated feature is a function of the student's: it knows nothing that the student does not."]
    if "generated" in own["trained"]:
        limits.append("The student was pretrained on generated clips of moving shapes, not on real videos.")
    if about["held_out"]:
        limits.append("Errors of translation are those of held-out clips of the data the converters were fitted on.")
    if not about["metrics"].get("evaluation"):
        limits.append("No evaluation is recorded here beyond the held-out part of the training data.")
    return limits
