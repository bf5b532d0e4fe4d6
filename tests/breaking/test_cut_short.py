"""Runs that are cut at the moments where a cut used to cost something."""

import shlex
import shutil
from pathlib import Path

import pytest
from small_runs import MAINS, result

from polyspace.config import run_command
from polyspace.data import synthetic
from polyspace.data.index_writer import IndexWriter
from polyspace.train.convert_index import ConvertConfig, convert_index
from polyspace.utils import trackers
from polyspace.utils.errors import UserError


class Stop(UserError):
    """In place of a kill."""


def test_a_run_cut_while_its_folder_goes_is_made_again(runs, tmp_path, monkeypatch, capsys):
    """The checkpoint that `latest` names has gone, `latest` itself would still be there."""
    expected = runs.expected("train-converter", monkeypatch)
    monkeypatch.chdir(tmp_path)

    def half(folder, **_):
        steps = list(Path(folder).glob("step_*"))
        for step in steps:
            shutil.rmtree(step)
        if steps:
            raise Stop("cut")

    with monkeypatch.context() as patch:
        patch.setattr(trackers, "shutil", type("Half", (), {"rmtree": staticmethod(half)}))
        assert runs.run("train-converter") == 2
    assert list(Path("out").glob("run-*")) and not list(Path("out").glob("run-*/latest"))
    capsys.readouterr()
    assert runs.run("train-converter") == 0 and result(tmp_path) == expected


def test_generated_clips_that_are_not_finished_are_no_data_set(tmp_path, monkeypatch, capsys):
    made = f"--layout hmdb51 --out {tmp_path}/clips --clips 8 --classes 2 --height 32 --width 40 --workers 1"
    asked = f"--dataset hmdb51 --root {tmp_path}/clips --split train --out {tmp_path}/out --workers 0 --frames 4"
    assert run_command(MAINS["synth"], made.split()) == 0
    draw, drawn = synthetic._draw, []

    def some(args):
        if len(drawn) == 3:
            raise Stop("cut")
        drawn.append(args)
        return draw(args)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_draw", some)
        assert run_command(MAINS["synth"], [*made.split(), "--seed", "1"]) == 2  # clips of two seeds lie there now
    assert run_command(MAINS["featurize"], asked.split()) == 2
    assert "clips are not finished; run the line that makes them again" in capsys.readouterr().err


def test_a_finished_index_leaves_alone_what_another_run_is_making_of_it(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.run("convert-index") == 0
    words = shlex.split(runs.line("convert-index"))
    values = {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    other = IndexWriter(Path("out"), {"of": "another"}, overwrite=True)
    other.open()
    convert_index(ConvertConfig(**values | {"rows": int(values["rows"])}))  # it is complete already
    assert other.folder.is_dir()
    other.discard()
    assert not other.partial.exists()


def test_a_bundle_that_cannot_be_written_leaves_no_copy_beside_it(runs, tmp_path, monkeypatch):
    from polyspace.bundle import files

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "bundle_card", lambda about: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert runs.run("bundle") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and not list((tmp_path / "out").iterdir())
    with pytest.raises(UserError, match="does not exist"):
        files.load_bundle(tmp_path / "out")
