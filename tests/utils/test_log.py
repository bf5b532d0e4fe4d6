"""Progress in a log and on a terminal, and lines between bars."""

import io
import itertools
import re
import sys
import types

import pytest

from polyspace.utils.log import Progress, say, warn


class Clock:
    """tqdm's time, moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr("polyspace.utils.log.time", types.SimpleNamespace(monotonic=clock))
    return clock


def work(clock: Clock, seconds: list[float]) -> None:
    with Progress(len(seconds), "train", "step") as bar:
        for taken in seconds:
            clock.now += taken
            bar.step(0, loss="1.5")
            bar.step()


def test_a_log_gets_a_line_every_ten_seconds_with_rate_and_time_left(clock, capsys):
    work(clock, [0.5] * 120)
    text = capsys.readouterr().err
    assert "\r" not in text and "\x1b" not in text and text.endswith("\n")
    lines = text.splitlines()
    done = [int(re.search(r"(\d+)/120", line).group(1)) for line in lines]
    assert done[0] == 0 and done[-1] == 120 and all(19 <= b - a <= 21 for a, b in itertools.pairwise(done[:-1]))
    assert len(lines) <= 8 and all("step/s" in line and "loss=1.5" in line for line in lines[1:])
    left = re.search(r"\[00:(\d+)<00:(\d+)", lines[2])
    assert int(left.group(1)) + int(left.group(2)) == pytest.approx(60, abs=1)


def test_steps_that_become_slow_hold_back_no_line(clock, capsys):
    work(clock, [0.01] * 2000 + [20.0] * 5)
    done = [int(re.search(r"(\d+)/2005", line).group(1)) for line in capsys.readouterr().err.splitlines()]
    assert len(done) < 12 and {2001, 2002, 2003, 2004, 2005} <= set(done)


def test_what_ends_early_or_at_once_has_a_last_line_too(clock, capsys):
    with pytest.raises(KeyboardInterrupt), Progress(5, "train", "step") as bar:
        bar.step(3)
        raise KeyboardInterrupt
    assert "3/5" in capsys.readouterr().err.splitlines()[-1]


def test_a_bar_within_another_writes_plain_lines_into_a_log(clock, capsys):
    with Progress(2, "outer", "run") as outer:
        for _ in range(2):
            with Progress(3, "inner", "step") as inner:
                clock.now += 30
                inner.step(3)
            outer.step()
    text = capsys.readouterr().err
    assert "\x1b" not in text and "\r" not in text and all(line.strip() for line in text.splitlines())
    assert len(re.findall("inner: 100%.*3/3", text)) >= 2 and "2/2" in text.splitlines()[-1]


def test_nothing_is_said_of_what_is_over_before_the_delay(clock, capsys):
    for seconds, shown in ((1.0, False), (5.0, True)):
        with Progress(None, "read", "episode", delay=2.0) as bar:
            for _ in range(3):
                clock.now += seconds
                bar.step()
        assert bool(capsys.readouterr().err) == shown


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_gets_a_bar_and_a_dumb_one_lines(clock, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", Terminal())
    work(clock, [1.0] * 3)
    assert ("\r" in sys.stderr.getvalue()) == (term == "xterm") and "3/3" in sys.stderr.getvalue()


def test_a_sentence_stands_on_a_line_of_its_own_above_a_terminals_bar(clock, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    with Progress(2, "train", "step") as bar:
        bar.step()
        warn("it is hot")
        say("and dry")
    shown = screen.getvalue().replace("\r", "\n").splitlines()
    assert "warning: it is hot" in shown and "and dry" in shown and "2/2" not in screen.getvalue()


def test_other_ranks_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with Progress(2, "train", "step") as bar:
        bar.step(2)
    say("a line")
    assert capsys.readouterr() == ("", "")
