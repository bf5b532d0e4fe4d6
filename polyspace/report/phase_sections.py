"""A run's report: what each phase was given, what it learned, beside what it started from and its controls."""

from pathlib import Path
from typing import Any

from polyspace.report.chunk_figures import history_figures
from polyspace.report.figures import series_figure
from polyspace.report.html import Page
from polyspace.report.look_sections import looks_section, plans_section
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError
from polyspace.utils.reading import parse_json, read_text

# phase -> metrics of its table in order: (key, words, whether lower is better)
SHOWN: dict[str, list[tuple[str, str, bool]]] = {
    "pretrain": [
        ("energy", "energy of hidden content", True),
        ("skill", "skill (0: the best constant, 1: perfect)", False),
        ("effective_rank", "effective rank of clip features", False),
        ("chunks", "tokens a clip", True),
    ],
    "language": [
        ("video_to_text_r1", "R@1 video to text", False),
        ("video_to_text_r5", "R@5 video to text", False),
        ("video_to_text_r10", "R@10 video to text", False),
        ("text_to_video_r1", "R@1 text to video", False),
        ("text_to_video_r5", "R@5 text to video", False),
        ("text_to_video_r10", "R@10 text to video", False),
        ("zero_shot", "zero-shot accuracy of class sentences", False),
    ],
    "probe": [
        ("accuracy", "accuracy", False),
        ("mean_average_precision", "mean average precision", False),
        ("binary_accuracy", "share of right yes-or-no answers", False),
    ],
    "action": [
        ("gain", "below copying the last frame, all steps", False),
        ("gain_one_step", "the same, one step", False),
        ("gain_other_actions", "the same, told another episode's actions", False),
    ],
}
WORDS = {
    "pretrain": "Latents of hidden content are predicted; no labels are used. First and last logged update.",
    "language": "Clips and captions in one space. Measured on held-out clips.",
    "probe": "A classifier on the encoder's chunks, trained on labelled clips and measured on held-out ones.",
    "action": "Future latents are predicted from actions. Measured on held-out episodes, over rollouts.",
}


CURVES: dict[str, tuple[str, dict[str, str]]] = {
    "language": (
        "recall among held-out captions",
        {"video_to_text_r1": "video to text, R@1", "text_to_video_r1": "text to video, R@1"},
    ),
    "probe": ("held-out clips", {"accuracy": "accuracy", "mean_average_precision": "mean average precision"}),
    "action": (
        "share of the copied frame's energy saved",
        {"gain": "all steps", "gain_one_step": "one step", "gain_other_actions": "told other actions"},
    ),
}
MONITORS = {
    "standard deviation over clips": {"position_std": "spread of features at a place"},
    "share (0 to 1)": {"boundary_rate": "boundary rate", "usage": "evenness of chunks' use"},
}


def phase_sections(page: Page, folder: Path, manifest: dict[str, Any], command: str = "") -> None:
    """A section for each phase of the run in `folder`; pictures of files that are gone are left out."""
    for name, entry in manifest["phases"].items():
        if name in WORDS:
            with page.section(str(folder / name)):
                _phase(page, folder, name, entry, command)


def run_section(page: Page, folder: Path) -> None:
    """How the run was started, and on what machine."""
    about = folder / "run.json"
    if about.is_file():
        run = read_json(about, "run")
        page.heading("Run")
        page.code(" ".join(run["argv"]))
        env = ", ".join(f"{k} {v}" for k, v in run.get("environment", {}).items() if v is not None)
        page.text(f"polyspace {run['version']}; {env}.", small=True)


def _phase(page: Page, folder: Path, name: str, entry: dict[str, Any], command: str) -> None:
    page.heading(name.capitalize())
    page.text(f"{WORDS[name]} {_data(entry['data'])} {entry['seconds']:.0f} s.")
    first, last = entry["first"] or {}, entry["last"]
    control, chance = entry.get("random_encoder") or {}, entry.get("chance")
    header = ["", "before", "after"]
    header += ["random encoder"] if control else []
    rows = []
    for key, words, lower in SHOWN[name]:
        if key in last:
            words = f"{words} (lower is better)" if lower and key == "energy" else words
            row = [words, _number(first.get(key)), _interval(last, key)]
            rows.append(row + ([_number(control.get(key))] if control else []))
    page.table(rows, header)
    if name == "language" and last.get("retrieved_among"):
        kind = "captions that no training clip has" if last["unseen_captions"] else "captions (training has them too)"
        page.text(f"Among {last['retrieved_among']} {kind}; chance of R@1 is {1 / last['retrieved_among']:.3f}.")
    if isinstance(chance, float):
        page.text(f"Chance is {chance:.3f}.")
    if control and not _beats(last, control):
        page.warning("On a random encoder the same probe is as good: this run does not show that pretraining helped.")
    for failed, reason in list(entry.get("failed", {}).items())[:20]:
        page.text(f"Left out: {failed}: {reason}", small=True)
    _curves(page, folder / name, name, command)
    if name == "pretrain":
        looks_section(page, folder / name, command)
    if name == "action" and (folder / name / "plans.json").is_file():
        plans_section(page, read_json(folder / name / "plans.json", "plans"), command)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last one that was cut short is left out."""
    if not path.is_file():
        return []
    lines = read_text(path, "metrics", errors="replace").splitlines()
    rows = []
    for line in lines:
        try:
            rows.append(parse_json(line, path, "metrics", dict[str, Any]))
        except UserError:
            break
    return rows


def _curves(page: Page, folder: Path, name: str, command: str) -> None:
    """Loss and monitors over updates; held-out metrics for the phases that have them."""
    rows = read_lines(folder / "metrics.jsonl")
    if name == "pretrain":
        figures = history_figures(rows)
        for key, figure in figures.items():
            page.figure(figure, CAPTIONS[key], command, rows, f"{name}_metrics")
        for label, keys in MONITORS.items():
            watched = series_figure(rows, keys, "update", label, False)
            if watched is not None:
                page.figure(watched, CAPTIONS[label], command, rows, f"{name}_metrics")
        return
    losses = series_figure(rows, {"loss": "loss"}, "update", "loss", False)
    if losses is not None:
        page.figure(losses, "Loss over updates.", command, rows, f"{name}_metrics")
    before = folder / "first.json"
    held = [read_json(before, "metrics")] if before.is_file() else []
    held += [row for row in rows if row.get("eval")]
    label, keys = CURVES[name]
    scores = series_figure(held, keys, "update", label)
    if scores is not None:
        page.figure(scores, "Held out, before the first update and since.", command, held)


CAPTIONS = {
    "loss": "Loss and its first term over updates.",
    "skill": "Skill: how far below the energy of one constant per place predictions are.",
    "rank": "Effective rank of clip features; near 1 they have collapsed to a line.",
    "tokens": "Tokens a clip, while training.",
    "standard deviation over clips": "Spread near 0 is collapse: features know only where, not which clip.",
    "share (0 to 1)": "A boundary rate of 0 or 1 is a gate that has stopped choosing.",
}


def write_pipeline_report(folder: Path, manifest: dict[str, Any], title: str, notes: list[str]) -> Path:
    """Write folder/report.html from a run's manifest; returns its path."""
    page = Page(title)
    for note in notes:
        page.text(note)
    about = folder / "run.json"
    command = " ".join(read_json(about, "run")["argv"]) if about.is_file() else ""
    phase_sections(page, folder, manifest, command)
    with page.section("run.json"):
        run_section(page, folder)
    for place, reason in page.failed.items():
        page.text(f"Left out: {place}: {reason}", small=True)
    return page.write(folder / "report.html")


def _beats(last: dict[str, Any], control: dict[str, Any]) -> bool:
    """The interval lies above the control's number."""
    if "accuracy" in last:
        return last["accuracy_low"] > control["accuracy"]
    return last["mean_average_precision"] > control["mean_average_precision"]


def _data(about: dict[str, Any]) -> str:
    source = about.get("dataset") or about.get("source")
    held = f", {about['held_out']} held out" if "held_out" in about else ""
    where = f" ({about['held_out_is']})" if "held_out_is" in about else ""
    return f"{about['clips']} clips or episodes ({source}){held}{where};"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(last: dict[str, Any], key: str) -> str:
    low, high = last.get(f"{key}_low"), last.get(f"{key}_high")
    return _number(last[key]) + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")
