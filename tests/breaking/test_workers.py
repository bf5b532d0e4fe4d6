"""A process that works for a run is killed: the run says so, and the same line ends in the same bits."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from small_runs import result
from test_run import alive

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="workers are found through Linux's /proc"),
]
VERBS = {"featurize": "featurize", "pretrain": "train", "synth": "synth"}


def line(runs, name: str) -> list[str]:
    words = runs.line(name)
    if name == "pretrain":
        clips = f"data.dataset=hmdb51 data.root={runs.base}/clips data.workers=2 pretrain.steps=20"
        words += "".join(f" --set {item}" for item in clips.split())
    else:
        words = words.replace("--workers 0", "--workers 2").replace("--workers 1", "--workers 2")
        words = words.replace("--clips 8", "--clips 60")
    return [sys.executable, "-m", "polyspace.cli", VERBS[name], *shlex.split(words)]


def children(pid: int) -> list[int]:
    """Processes that `pid` started and that do its work, not those that only keep count of them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            words = (place / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == pid and b"resource_tracker" not in words:
            found.append(int(place.name))
    return sorted(found)


def begun(place: Path) -> bool:
    """Whether something of the work's result lies there."""
    return any(p.suffix in (".safetensors", ".avi") or p.name == "latest" for p in place.rglob("*"))


def run(words: list[str], place: Path, kill: bool) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    place.mkdir(exist_ok=True)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, cwd=place, env=environment, **pipes)
    while kill and process.poll() is None:
        workers = children(process.pid)
        if workers and begun(place):
            os.kill(workers[0], signal.SIGKILL)
            break
        time.sleep(0.005)
    said = process.communicate(timeout=300)[1]
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_a_killed_worker_is_a_sentence_and_the_same_line_ends_in_the_same_bits(runs, tmp_path, name):
    words = line(runs, name)
    code, said = run(words, tmp_path / "killed", kill=True)
    assert code == 2 and "Traceback" not in said
    assert "died" in said.strip().splitlines()[-1] and said.strip().splitlines()[-1].startswith("error: ")
    for place in ("killed", "whole"):
        code, said = run(words, tmp_path / place, kill=False)
        assert code == 0, said
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


def test_workers_end_with_a_killed_featurize_and_write_nothing_behind_it(runs, tmp_path):
    words = line(runs, "featurize")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    while not begun(tmp_path) and process.poll() is None:
        time.sleep(0.005)
    workers = children(process.pid)
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, workers))
