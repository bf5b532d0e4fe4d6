"""`polyspace fit`: a person's own videos, one command, one report."""

import csv
import json
import re

import pytest
import torch

from polyspace.config import run_command
from polyspace.data.captions import caption_clips, motion_words
from polyspace.data.moving import moving_clips
from polyspace.data.video_writer import write_video
from polyspace.train.fit_videos import main

CLIPS = 16


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Files in class folders, and what could be said of them."""
    root = tmp_path_factory.mktemp("videos")
    clips = moving_clips(CLIPS, 0, frames=12, size=48, classes=2)
    rows = []
    for i, text in enumerate(caption_clips(clips)):
        name = motion_words(int(clips.label[i])).replace(" ", "_")
        write_video(root / name / f"{i}.mp4", clips.video[i].numpy(), 12)
        rows.append({"path": f"{name}/{i}.mp4", "label": name, "text": text})
    return root, rows


@pytest.fixture
def quick(monkeypatch):
    """Three updates a phase."""
    from polyspace.train import fit_videos

    full = fit_videos.run_config

    def short(*arguments):
        config = full(*arguments)
        three = {"steps": 3, "save_every": 3}
        parts = {name: getattr(config, name).model_copy(update=three) for name in ("pretrain", "language", "probe")}
        return config.model_copy(update=parts)

    monkeypatch.setattr(fit_videos, "run_config", short)


def fit(root, out, *more) -> int:
    return run_command(main, ["--data", str(root), "--out", str(out), "--workers", "0", *more])


def test_class_folders_are_pretrained_on_and_probed(videos, tmp_path, quick, capsys):
    root, _ = videos
    assert fit(root, tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert "No language phase: 0 of 16 clips have a caption" in said
    assert said.strip().splitlines()[-1] == f"-> {tmp_path / 'a' / 'report.html'}"
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Pretrain" in page and "Probe" in page and "Language" not in page.replace("No language", "")
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)


def test_captions_beside_the_videos_bring_the_language_phase(videos, tmp_path, quick):
    root, rows = videos
    listed = tmp_path / "captions.csv"
    with open(listed, "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "text"])
        writer.writeheader()
        writer.writerows([*rows, {"path": "gone.mp4", "label": rows[0]["label"], "text": "a lost clip"}])
    assert fit(root, tmp_path / "b", "--list", str(listed)) == 0
    phases = json.loads((tmp_path / "b" / "pipeline_manifest.json").read_text())["phases"]
    assert list(phases) == ["pretrain", "language", "probe"]
    assert phases["language"]["data"]["clips"] + phases["language"]["data"]["held_out"] == CLIPS
    page = (tmp_path / "b" / "report.html").read_text()
    assert "1 listed files were not there" in page and "R@1 video to text" in page
    again = fit(root, tmp_path / "c", "--init_from", str(tmp_path / "b"))
    assert again == 0 and not (tmp_path / "c" / "pretrain").exists()


def test_too_few_videos_or_nothing_to_do_is_a_sentence(videos, tmp_path, capsys):
    write_video(tmp_path / "one" / "a.mp4", torch.zeros(12, 48, 48, 3, dtype=torch.uint8).numpy(), 12)
    assert fit(tmp_path / "one", tmp_path / "d") == 2
    assert "has 1 videos; at least 8" in capsys.readouterr().err
    assert fit(tmp_path / "nowhere", tmp_path / "d") == 2
    assert "is not a folder" in capsys.readouterr().err
