"""`polyspace doctor --dataset`: what is wrong with a data set's clips."""

import json
import shutil

import numpy as np
import pytest

from polyspace import cli, doctor
from polyspace.data import hmdb51
from polyspace.data.render import orbit_clip
from polyspace.data.video_writer import write_video


def write(path, seed: int, start: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, orbit_clip(np.random.default_rng(seed), 1, 19, 32, 48, 0.0).video[start:])


@pytest.fixture
def folder(tmp_path):
    for seed, place in enumerate(("train/run/a.mp4", "train/run/b.mp4", "train/sit/c.mp4", "validation/run/d.mp4")):
        write(tmp_path / "data" / place, seed)
    return tmp_path / "data"


def look(folder, *words: str) -> tuple[int, dict]:
    out = folder.parent / "found.json"
    code = cli.main(
        ["doctor", "--dataset", "videofolder", "--root", str(folder), *(words or ("--workers", "0")), "--out", str(out)]
    )
    return code, json.loads(out.read_text())


def test_clean_splits_pass_and_a_class_without_clips_is_named(folder, capsys):
    code, found = look(folder)
    assert code == 0 and found["clips"] == {"train": 3, "validation": 1}
    assert found["across_splits"] == found["within_a_split"] == found["identical_files"] == found["unreadable"] == []
    assert found["classes_without_clips"] == {"train": [], "validation": ["sit"]}
    assert "no test split" in capsys.readouterr().out


def test_a_copy_in_another_split_is_an_error_that_says_how_many(folder, capsys):
    write(folder / "validation/sit/e.webm", 1, start=1)
    code, found = look(folder)
    (pair,) = found["across_splits"]
    assert code == 1
    assert pair["first"]["id"] == "train/run/b.mp4" and pair["second"]["id"] == "validation/sit/e.webm"
    assert found["label_conflicts"] == [pair]
    assert "1 near-duplicate pair stands in two splits" in capsys.readouterr().err


def test_copies_within_a_split_are_told_apart_from_those_across(folder):
    shutil.copy(folder / "train/run/a.mp4", folder / "train/run/z.mp4")
    code, found = look(folder)
    assert code == 0 and len(found["within_a_split"]) == 1 and found["across_splits"] == []
    assert [[c["id"] for c in same] for same in found["identical_files"]] == [["train/run/a.mp4", "train/run/z.mp4"]]


def test_an_unreadable_clip_is_listed_with_its_reason_and_the_rest_is_looked_at(folder):
    (folder / "train/run/broken.mp4").write_bytes(b"no video")
    write(folder / "validation/run/e.mp4", 2)
    code, found = look(folder)
    assert code == 1 and [c["id"] for c in found["unreadable"]] == ["train/run/broken.mp4"]
    assert found["unreadable"][0]["reason"] and found["across_splits"][0]["first"]["id"] == "train/sit/c.mp4"


def test_a_film_in_two_splits_is_named_and_a_list_that_is_read_twice_is_not(tmp_path, capsys):
    root = tmp_path / "hmdb"
    lines = {"Film_wave_f_nm_np1_fr_med_0.avi": 1, "Film_wave_f_nm_np1_fr_med_1.avi": 2}
    for seed, name in enumerate(lines):
        write(root / "wave" / name, seed)
    (root / hmdb51.SPLIT_FOLDER).mkdir()
    text = "".join(f"{name} {tag}\n" for name, tag in lines.items())
    (root / hmdb51.SPLIT_FOLDER / "wave_test_split1.txt").write_text(text)
    out = tmp_path / "found.json"
    assert cli.main(["doctor", "--dataset", "hmdb51", "--root", str(root), "--workers", "0", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["sources_in_two_splits"] == {"Film": ["train", "validation"]}
    assert "test lists the same clips as validation" in capsys.readouterr().out


def test_a_worker_finds_what_this_process_finds(folder):
    write(folder / "validation/sit/e.webm", 1, start=1)
    (folder / "train/run/broken.mp4").write_bytes(b"no video")
    assert look(folder, "--workers", "1") == look(folder)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--root data", "--root has no meaning without --dataset"),
        ("--dataset videofolder", "needs --root"),
        ("--dataset videofolder --root {} --splits test", "no test/"),
        ("--dataset hmdb15 --root {}", "did you mean 'hmdb51'"),
        ("--dataset videofolder --root {} --threshold 0", "--threshold"),
    ],
)
def test_flags_that_can_not_be_meant_are_one_sentence(line, words, folder, capsys):
    assert cli.main(["doctor", *line.format(folder).split()]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_without_a_data_set_no_clip_is_looked_at(monkeypatch):
    monkeypatch.setattr(doctor, "package_rows", lambda: ([], False))
    assert doctor.main([]) == 1
