"""The clock on the wall is set while a run goes on, and files' times with it: no result, lock or checkpoint cares."""

import itertools
import os
import time

import pytest
import torch
from small_runs import MAINS, result
from test_loop import Toy, engine_of, train

from polyspace.train.checkpoint import load_checkpoint
from polyspace.utils.log import Progress

DAY, YEAR = 86_400.0, 365 * 86_400.0


@pytest.fixture(params=[-DAY, YEAR], ids=["back a day", "forward a year"])
def jump(request, monkeypatch):
    """The clock jumps at every third look at it, and back."""
    real, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + (request.param if next(looks) % 3 else 0))
    return request.param


@pytest.mark.parametrize("name", MAINS)
def test_a_run_in_which_the_clock_jumps_ends_in_the_same_bits(runs, tmp_path, monkeypatch, jump, name):
    expected = runs.expected(name, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert runs.run(name) == 0 and result(tmp_path) == expected


def test_neither_resume_nor_retention_looks_at_the_times_of_files(tmp_path, jump):
    whole, again = Toy(), Toy()
    train(whole, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        train(Toy(stop_at=8), tmp_path)
    for i, path in enumerate(sorted(tmp_path.rglob("*"), reverse=True)):  # the oldest is the newest
        os.utime(path, (i * DAY, i * DAY))
    assert load_checkpoint(tmp_path, engine_of(Toy()))["step"] == 6
    train(again, tmp_path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_000009", "step_000012"]


def test_a_bar_goes_on_and_its_rate_is_that_of_a_steady_clock(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("polyspace.utils.log.time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: -DAY * now[0])
    with Progress(40, "train", "step") as bar:
        for _ in range(40):
            now[0] += 2.0
            bar.step()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 8 and all(" 2.00s/step" in line for line in lines[1:]) and "<" in lines[3]


@pytest.mark.parametrize("seconds", [-DAY, YEAR])
def test_events_of_a_run_that_goes_on_after_the_clock_was_set_are_read_in_order(tmp_path, monkeypatch, seconds):
    pytest.importorskip("tensorboard")
    from test_tracking import events, expected
    from test_tracking import train as tracked

    with pytest.raises(RuntimeError, match="stopped"):
        tracked(Toy(stop_at=5), tmp_path)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    with pytest.raises(RuntimeError, match="stopped"):
        tracked(Toy(stop_at=8), tmp_path)
    monkeypatch.undo()
    tracked(Toy(), tmp_path)
    assert events(tmp_path) == expected(tmp_path)
