"""Moving an index: killed at any moment and continued to the same bytes, in memory that does not grow."""

import gc
import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from index_files import config, files, make_converters, make_place, save_rows, sentence, student_rows

from polyspace.config import run_command
from polyspace.data import index
from polyspace.data.index import load_index
from polyspace.train import convert_index as command
from polyspace.train.convert_index import ConvertConfig, convert_index
from polyspace.utils.errors import UserError

N = 500


@pytest.fixture
def place(tmp_path):
    return make_place(tmp_path)


def _in_one_thread(made):
    torch.set_num_threads(1)
    convert_index(made)


def _slowly(made):
    """So that a fast disk does not end it before it can be killed."""
    record = command.IndexWriter.record
    command.IndexWriter.record = lambda *words: (record(*words), time.sleep(0.003))
    _in_one_thread(made)


def _killed(made, wait):
    """Convert in a process of its own, killed once it has written down new progress, and `wait` seconds later."""
    progress = made.out.parent / f".{made.out.name}.partial" / "progress.json"

    def rows_done():
        return json.loads(progress.read_text())["rows_done"] if progress.is_file() else 0

    before = rows_done()
    process = multiprocessing.get_context("fork").Process(target=_slowly, args=(made,))
    process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive() and rows_done() == before:
        time.sleep(0.001)
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not made.out.exists()
    return rows_done()


def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(tmp_path):
    make_converters(tmp_path / "c.pt", "residual_mlp", d=40, e=24)
    x = save_rows(tmp_path / "x.npy", torch.randn(8_000, 40))
    words = {"index": x, "converters": tmp_path / "c.pt", "space": "t", "rows": 32, "batch": 8}
    made = ConvertConfig(out=tmp_path / "killed", **words)
    stops = [_killed(made, wait) for wait in (0, 0.003, 0.02, 0.05)]
    assert stops == sorted(set(stops)) and stops[0] > 0 and stops[-1] < 8_000
    threads = torch.get_num_threads()
    try:
        _in_one_thread(made)
        _in_one_thread(whole := made.model_copy(update={"out": tmp_path / "whole"}))
    finally:
        torch.set_num_threads(threads)
    assert files(made.out) == files(whole.out)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


class Stop(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("moment", ["before the name", "before the folder goes", "between overwrite's two names"])
def test_a_run_killed_in_its_last_steps_is_finished_by_the_next(place, monkeypatch, moment):
    from polyspace.data import index_writer

    expected = files(convert_index(config(place)).folder)
    again = config(place, out=place / "u", overwrite=moment.startswith("between"))
    if again.overwrite:
        convert_index(again.model_copy(update={"metric": "l2", "overwrite": False}))
    replace, calls = os.replace, []

    def stop(*words):
        if str(words[-1]).endswith(("/u", "/old")):
            calls.append(words)
            if moment == "before the name" or len(calls) == 2:
                raise Stop
        return replace(*words)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(index_writer.os, "replace", stop)
        if moment == "before the folder goes":
            patch.setattr(index_writer.os, "replace", replace)
            patch.setattr(index_writer, "sync_path", lambda path: (_ for _ in ()).throw(Stop))
        convert_index(again)
    assert (place / "u").exists() == (moment == "before the folder goes")
    assert files(convert_index(again).folder) == expected
    assert not [p for p in place.iterdir() if p.name.startswith(".")]


def _stopped(place, monkeypatch, after=3, **more):
    """Rows of an array converted up to `after` blocks of 16, then cut."""
    made = config(place, index=save_rows(place / "x.npy", student_rows(N)), out=place / "k", rows=16, batch=8, **more)
    record, calls = command.IndexWriter.record, []

    def counted(self, *words):
        if len(calls) == after:
            raise Stop
        calls.append(words)
        record(self, *words)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(command.IndexWriter, "record", counted)
        convert_index(made)
    return made


def test_what_is_done_is_not_done_again(place, monkeypatch, capsys):
    made = _stopped(place, monkeypatch)
    capsys.readouterr()
    convert_index(made)
    assert f"continuing: 48 of {N} vectors are done" in capsys.readouterr().out
    run = json.loads((place / "k" / "run.json").read_text())
    assert run["report"]["rows"] == N - 48


def test_damage_in_an_unfinished_result_is_noticed_and_made_again(place, monkeypatch, capsys):
    made = _stopped(place, monkeypatch)
    array = place / ".k.partial" / "index" / "vectors.npy"
    data = bytearray(array.read_bytes())
    data[200] ^= 1
    array.write_bytes(bytes(data))
    folder = convert_index(made).folder
    assert "is damaged; beginning again" in capsys.readouterr().err
    assert files(folder) == files(convert_index(made.model_copy(update={"out": place / "w"})).folder)


def test_an_unfinished_result_is_not_mixed_with_other_settings_or_a_changed_source(place, monkeypatch):
    made = _stopped(place, monkeypatch)
    with pytest.raises(UserError, match="unfinished index made with another rows; give --overwrite"):
        convert_index(made.model_copy(update={"rows": 32}))
    os.utime(made.index, ns=(1, 1))
    with pytest.raises(UserError, match="was changed since"):
        convert_index(made)
    assert convert_index(made.model_copy(update={"overwrite": True})).rows == N


def test_the_data_of_a_block_is_on_the_disk_before_its_progress_is(place, monkeypatch):
    from polyspace.utils.array_file import ArrayWriter

    events = []
    sync, record = ArrayWriter.sync, command.IndexWriter.record
    monkeypatch.setattr(ArrayWriter, "sync", lambda self: (sync(self), events.append("sync")))
    monkeypatch.setattr(command.IndexWriter, "record", lambda self, *w: (events.append(w[0]), record(self, *w)))
    convert_index(config(place, rows=16, batch=8))
    assert events == ["sync", 16, "sync", 32, "sync", 41]


def _peak_growth(run):
    """By how much the process's resident memory rises above its start while `run` goes on (Linux)."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.is_file():
        pytest.skip("peak memory is read from Linux's /proc")

    def peak():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text()).group(1)) << 10

    clear.write_text("5")  # the peak becomes the present
    before = peak()
    run()
    return peak() - before


def test_memory_does_not_grow_with_the_index(tmp_path, monkeypatch):
    d, n, bound = 64, 300_000, 24 << 20
    monkeypatch.setattr(index, "SEARCH_FLOATS", 1 << 18)
    make_converters(tmp_path / "c.pt", d=d, e=48)
    words = {"converters": tmp_path / "c.pt", "space": "t", "rows": 65_536, "batch": 1024}
    small = ConvertConfig(index=save_rows(tmp_path / "a.npy", torch.randn(2048, d)), out=tmp_path / "a", **words)
    convert_index(small).search(torch.randn(3, 48), 5)  # what is loaded once is loaded
    save_rows(tmp_path / "x.npy", torch.randn(n, d))
    made = ConvertConfig(index=tmp_path / "x.npy", out=tmp_path / "t", **words)
    gc.collect()
    assert made.index.stat().st_size > 3 * bound
    assert _peak_growth(lambda: convert_index(made)) < bound
    assert _peak_growth(lambda: load_index(made.out).search(torch.randn(3, 48), 5)) < bound


def test_two_runs_do_not_write_one_index(place, monkeypatch):
    made = _stopped(place, monkeypatch)
    writer = command.IndexWriter(made.out, {}, overwrite=True)
    writer.open()
    with pytest.raises(UserError, match="another run is writing"):
        convert_index(made)
    writer.close()


def test_a_full_disk_is_a_sentence_before_any_product_and_the_run_can_be_continued(place, capsys):
    """A limit on file size stands in for the full disk."""
    resource = pytest.importorskip("resource")
    save_rows(place / "x.npy", student_rows(40_000))
    line = f"--index {place}/x.npy --converters {place}/c.pt --space t --out {place}/k"
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        last = sentence(command.main, line, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert last.startswith("error: cannot write ") and "File too large" in last
    assert run_command(command.main, line.split()) == 0 and load_index(place / "k").rows == 40_000
