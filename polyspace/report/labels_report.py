"""The files of a labels curve: JSON, Markdown, and a picture, from one result dict."""

from pathlib import Path
from typing import Any

from polyspace.report.eval_report import data_name, stand_in_notice
from polyspace.report.figures import labels_figure, save_figure
from polyspace.utils.checkpoint_io import write_sealed, write_text
from polyspace.utils.log import table


def labels_columns(result: dict[str, Any]) -> list[str]:
    heads = list(result["points"][0]["heads"])
    gain = ["fusion − student only, over seeds", "over clips", "verdict"]
    return ["asked for", "labelled clips", "of all training clips", *heads, *gain]


def labels_words(result: dict[str, Any]) -> str:
    clips = result["clips"]
    return (
        f"Top-1 on {clips['scored']} clips, mean over {result['seeds']} seeds (which clips are labelled, weights, "
        "order) with a 95 % t interval, and the difference's bootstrap interval over clips; a verdict needs both. All "
        "heads have as many parameters, batches and updates. Shares are of the training clips not held out, one a "
        f"class at least. The epoch is chosen on the {clips['held_out']} held out, at every share and for all heads "
        "alike: more labels than one would have then. Converters are fitted without labels, on all training "
        "clips; what labels the teachers have seen, their own line says."
    )


def labels_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for p in result["points"]:
        scores = [_spread(head["top1"], "") for head in p["heads"].values()]
        difference = _spread(p["difference"]["top1"], "+")
        share = p["clips"] / result["clips"]["train"]
        over_clips = f"[{p['difference']['over_clips'][0]:+.3f}, {p['difference']['over_clips'][1]:+.3f}]"
        asked = [f"{p['fraction']:.3g}", str(p["clips"]), f"{share:.1%}"]
        rows.append([*asked, *scores, difference, over_clips, p["verdict"]])
    return rows


def _spread(values: list[float], sign: str) -> str:
    mean, low, high = values
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def write_labels_files(result: dict[str, Any], folder: Path) -> None:
    """labels_curve_{dataset}_{split}.{json,md,png} in `folder`."""
    stem = f"labels_curve_{result['dataset']}_{result['split']}"
    figure = labels_figure(result["points"], result["chance"])
    save_figure(figure, folder / f"{stem}.png", bool(result["stand_ins"]))
    notice = stand_in_notice(result)
    lines = [f"# {data_name(result)}, labels curve", "", *([f"> **{notice}**", ""] if notice else [])]
    lines += [
        labels_words(result),
        "",
        *table(labels_rows(result), labels_columns(result)),
        "",
        f"![curve]({stem}.png)",
        "",
    ]
    lines += [f"Command: `{' '.join(result['run']['argv'])}`"]
    write_text(folder / f"{stem}.md", "\n".join(lines) + "\n")
    write_sealed(folder / f"{stem}.json", result)
