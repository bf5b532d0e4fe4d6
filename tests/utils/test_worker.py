"""A pool that loses a process says so, and the run that has it ends."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from polyspace.data.clip_source import ready_worker
from polyspace.utils.errors import UserError
from polyspace.utils.worker import result_of


def name():
    time.sleep(0.2)
    return os.getpid()


def torn():
    threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(1 << 30)


if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, get_context("spawn"), ready_worker)
    workers = set()
    while len(workers) < 2:
        workers |= {job.result() for job in [pool.submit(name) for _ in range(2)]}
    workers = sorted(workers)
    time.sleep(0.2)  # both are idle
    if sys.argv[1] != "torn":
        os.kill(workers[int(sys.argv[1])], signal.SIGKILL)
    try:
        result_of(pool.submit(torn if sys.argv[1] == "torn" else name), pool, "a worker died")
    except (UserError, RuntimeError) as error:
        print(error)
"""


@pytest.mark.dist
@pytest.mark.parametrize("which", ["0", "1", "torn"])
def test_a_run_ends_whichever_of_its_workers_is_killed_and_whenever(which, tmp_path):
    """One idle worker holds the queue's lock, which its death leaves taken; another is killed while it hands over."""
    script = tmp_path / "pool.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script), which], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and ("died" in done.stdout or "terminated" in done.stdout), done.stderr
