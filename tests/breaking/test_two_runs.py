"""Two runs in one folder: the second stops with a sentence, the first ends right, and a killed one holds nothing."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from small_runs import MAINS, PRETRAIN, result

from polyspace.commands.demo import main as demo
from polyspace.commands.index import main as index
from polyspace.config import run_command
from polyspace.train.checkpoint import restore_rng, rng_state
from polyspace.train.fit_videos import main as fit
from polyspace.utils import checkpoint_io
from polyspace.utils.errors import UserError
from polyspace.utils.folders import clear_left_over, sole_writer

ANOTHER = "another run is writing"


def second(monkeypatch, run, capsys):
    """Has `run` called in the middle of another run, at the second file that one writes; what it said."""
    temporary, calls, said = checkpoint_io._temporary, [], []

    @contextlib.contextmanager
    def counted(path):
        calls.append(path)
        if len(calls) == 2:
            capsys.readouterr()
            drawn = rng_state()  # both runs are in one process here
            assert run() == 2
            restore_rng(drawn)
            said.append(capsys.readouterr().err.strip().splitlines()[-1])
        with temporary(path) as file:
            yield file

    monkeypatch.setattr(checkpoint_io, "_temporary", counted)
    return said


@pytest.mark.parametrize("name", MAINS)
def test_a_second_run_stops_with_a_sentence_and_the_first_ends_right(runs, tmp_path, monkeypatch, capsys, name):
    expected = runs.expected(name, monkeypatch)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        said = second(patch, lambda: runs.run(name), capsys)
        assert runs.run(name) == 0
    assert len(said) == 1 and said[0].startswith("error: ") and ANOTHER in said[0] and "out" in said[0]
    assert result(tmp_path) == expected
    assert not [p.name for p in tmp_path.rglob(".*")]  # no lock is left


def test_index_fit_and_demo_hold_their_folders_too(runs, tmp_path, monkeypatch, capsys):
    lines = {
        index: f"--bundle {runs.base}/run --videos {runs.base}/clips --out {tmp_path}/index",
        fit: f"--data {runs.base}/clips --out {tmp_path}/fit --steps 1 --workers 0 --init_from {runs.base}/run",
    }
    with monkeypatch.context() as patch:
        said = second(patch, lambda: run_command(index, lines[index].split()), capsys)
        assert run_command(index, lines[index].split()) == 0
    assert ANOTHER in said[0]
    with sole_writer(tmp_path / "fit"), sole_writer(tmp_path / "demo"):
        for main, line in ((fit, lines[fit]), (demo, f"--out {tmp_path}/demo")):
            assert run_command(main, line.split()) == 2
            assert ANOTHER in capsys.readouterr().err


def test_other_settings_of_the_same_store_are_another_run_too(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = [*shlex.split(runs.line("featurize")), "--sampling", "stride:1"]
    said = second(monkeypatch, lambda: run_command(MAINS["featurize"], other), capsys)
    assert runs.run("featurize") == 0 and ANOTHER in said[0]


def test_a_killed_run_holds_nothing_and_what_it_left_is_cleared(tmp_path):
    words = ["-m", "polyspace.cli", "train", "--work_dir", "out", *shlex.split(PRETRAIN), "--set", "pretrain.steps=500"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([sys.executable, *words], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "pretrain" / "latest").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(UserError, match=ANOTHER), sole_writer(tmp_path / "out"):
        pass
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    left = tmp_path / "out" / "pretrain" / ".x.json.abcdefgh.polyspace.tmp"
    left.touch()
    with sole_writer(tmp_path / "out"):
        assert not left.exists()


def test_only_what_nobody_is_writing_is_cleared_and_only_of_ours(tmp_path):
    (tmp_path / ".somebody.tmp").touch()
    (tmp_path / ".old.json.12345678.polyspace.tmp").touch()
    with checkpoint_io.atomic_file(tmp_path / "new.json") as file:
        file.write(b"1")
        clear_left_over(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".somebody.tmp", "new.json"]


def test_a_forked_worker_does_not_keep_the_lock_of_a_run_that_is_gone(tmp_path):
    code = f"""
import os, pathlib, time
from polyspace.utils.folders import sole_writer
with sole_writer(pathlib.Path({str(tmp_path)!r})):
    child = os.fork()
    if child == 0: time.sleep(60)
    print(child, flush=True)
    os.kill(os.getpid(), 9)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    child = int(parent.stdout.readline())
    parent.wait()
    try:
        assert (Path("/proc") / str(child)).exists() or sys.platform != "linux"
        with sole_writer(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
