"""A run's report: what each phase was given, what it learned, beside what it started from and its controls."""

from pathlib import Path
from typing import Any

from polyspace.report.html import Page
from polyspace.utils.checkpoint_io import read_json

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


def write_pipeline_report(folder: Path, manifest: dict[str, Any], title: str, notes: list[str]) -> Path:
    """Write folder/report.html from a run's manifest; returns its path."""
    page = Page(title)
    for note in notes:
        page.text(note)
    for name, entry in manifest["phases"].items():
        _phase(page, name, entry)
    about = folder / "run.json"
    if about.is_file():
        run = read_json(about, "run")
        page.heading("Run")
        page.code(" ".join(run["argv"]))
        env = ", ".join(f"{k} {v}" for k, v in run.get("environment", {}).items() if v is not None)
        page.text(f"polyspace {run['version']}; {env}.", small=True)
    return page.write(folder / "report.html")


def _phase(page: Page, name: str, entry: dict[str, Any]) -> None:
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
    for picture in entry.get("pictures", []):
        if Path(picture).is_file():
            page.image(Path(picture), Path(picture).stem.replace("_", " "))


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
