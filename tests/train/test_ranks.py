"""main.py under its launchers: the typed lines on two ranks, a rank that is killed, a restart."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from library import PHASES

from polyspace.utils.checkpoint_io import load_tensors

pytestmark = [pytest.mark.dist, pytest.mark.slow]
REPOSITORY = Path(__file__).parents[2]
SETS = [f"{part}.{item}" for part, items in PHASES.items() for item in items.split()]
TYPED = "main.py --work_dir outputs --sequence pretrain,language,probe,action"
TORCHRUN = f"torchrun --nproc_per_node=8 --master_port=29500 {TYPED}"
DEEPSPEED = f"deepspeed --num_gpus=8 {TYPED} --use_deepspeed 1 --deepspeed_config configs/deepspeed_zero2.json"


def start(line: str, place: Path, sets: list[str]) -> subprocess.Popen:
    """The line as typed, but for the ranks (2), short phases, and the repository's files being elsewhere."""
    program, *words = line.replace("=8", "=2").replace("29500", "29541").split()
    words = [str(REPOSITORY / w) if w in ("main.py", "configs/deepspeed_zero2.json") else w for w in words]
    command = [str(Path(sys.executable).parent / program), *words, *(x for s in sets for x in ("--set", s))]
    env = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=place, env=env, start_new_session=True, **pipes)


def end(process: subprocess.Popen, seconds: int = 300) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        for pid in [*workers(process.pid), process.pid]:  # ranks outlive their launcher, and hold its pipe
            os.kill(pid, signal.SIGKILL)
        pytest.fail(f"still running after {seconds} s: {process.communicate()[0][-3000:]}")


@pytest.mark.parametrize("line", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_a_typed_line_runs_all_phases_on_two_ranks(tmp_path, line):
    if line is DEEPSPEED:
        pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
    # targets without what stands still are made over all ranks, pictures at the end by one
    process = start(line, tmp_path, [*SETS, "pretrain.still=0.5"])
    said = end(process)
    assert process.returncode == 0, said[-3000:]
    phases = json.loads((tmp_path / "outputs" / "pipeline_manifest.json").read_text())["phases"]
    assert list(phases) == ["pretrain", "language", "probe", "action"]
    assert (tmp_path / "outputs" / "report.html").is_file() and "2 ranks" in said
    assert said.count("language: R@1") == 1  # one rank speaks


def workers(pid: int) -> list[int]:
    """The ranks: children of the launcher that run main.py."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (place / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == pid and b"main.py" in words:
            found.append(int(place.name))
    return sorted(found)


LONG = ["pretrain.steps=40", "pretrain.save_every=4", "pretrain.log_every=1", "pretrain.batch=8"]
SMALL = [s for s in SETS if s.split(".")[0] in ("data", "encoder")] + LONG
LINE = TORCHRUN.replace(",language,probe,action", "")


def kill_one(process: subprocess.Popen, place: Path) -> None:
    """SIGKILL to the second rank once there is a checkpoint to go on from."""
    until = time.monotonic() + 120
    while not (place / "outputs" / "pretrain" / "latest").is_file():
        assert time.monotonic() < until and process.poll() is None, "no checkpoint was written"
        time.sleep(0.05)
    os.kill(workers(process.pid)[1], signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="ranks are found through Linux's /proc")
def test_a_killed_rank_ends_the_others_and_a_restart_ends_in_the_same_state(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    process = start(LINE, whole, SMALL)
    assert end(process) and process.returncode == 0
    process = start(LINE, killed, SMALL)
    kill_one(process, killed)
    said = end(process, 90)
    assert process.returncode != 0 and "another rank ended" in said
    done = (killed / "outputs" / "pretrain" / "latest").read_text()
    assert done < (whole / "outputs" / "pretrain" / "latest").read_text()
    process = start(LINE.replace("--master_port", "--max-restarts=1 --master_port"), killed, SMALL)
    until = time.monotonic() + 120
    while (killed / "outputs" / "pretrain" / "latest").read_text() == done and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    said = end(process)
    assert process.returncode == 0, said[-3000:]
    last = "outputs/pretrain/step_000040/model.safetensors"
    ours, theirs = (load_tensors(place / last) for place in (killed, whole))
    assert all((ours[key] == value).all() for key, value in theirs.items())
