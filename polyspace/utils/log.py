"""What a command says: plain lines on stdout, warnings on stderr, progress with rate and ETA."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"  # the launcher's word: importing torch for this would slow every --help


_bars: list[Any] = []  # those on a terminal


@contextlib.contextmanager
def _above_bars() -> Iterator[None]:
    """Bars that a terminal shows make room for what is written within."""
    for bar in _bars:
        bar.clear()
    yield
    for bar in _bars:
        bar.refresh()


def say(text: str = "") -> None:
    """One line on stdout, from rank 0 only, flushed so that logs and pipes see it at once."""
    if _is_main():
        with _above_bars():
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def warn(text: str) -> None:
    """One line on stderr, from every rank."""
    with _above_bars():
        sys.stderr.write(f"warning: {text}\n")
        sys.stderr.flush()


def banner(lines: list[str]) -> None:
    """A framed notice on stderr that can't be overlooked in a log."""
    if not _is_main():
        return
    width = max(len(line) for line in lines)
    edge = "#" * (width + 4)
    body = "\n".join(f"# {line.ljust(width)} #" for line in lines)
    sys.stderr.write(f"{edge}\n{body}\n{edge}\n")
    sys.stderr.flush()


def quiet_libraries() -> None:
    """Keep the chatter of transformers and FFmpeg out of the commands' output."""
    for name in ("transformers", "huggingface_hub", "libav", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _Lines:
    """What tqdm writes over itself on a terminal becomes lines in a log."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def _steady(bar: Any) -> None:
    """Rate, time left and when the next line is due don't follow the clock on the wall, which may be set."""
    if not bar.disable:
        bar._time = time.monotonic
        bar.start_t = bar.last_print_t = time.monotonic()


class Progress:
    """A tqdm bar on a terminal; elsewhere a line at the start, every ten seconds and at the end, with rate and time
    left. Nothing on other ranks, and nothing of what is over within `delay` seconds. `total`: None if not known.

    >>> with Progress(100, "featurize", unit="clip") as bar: bar.step(4, failed=1)
    """

    def __init__(self, total: int | None, name: str, unit: str = "it", initial: int = 0, delay: float = 0.0) -> None:
        from tqdm import tqdm

        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bar = tqdm(
            total=total,
            desc=name,
            unit=unit,
            initial=initial,
            disable=not _is_main(),
            delay=delay,
            mininterval=0.2 if terminal else 10.0,
            miniters=None if terminal else 1,  # guessed from the rate, it would hold back lines when steps slow down
            position=None if terminal else 0,  # a bar within another moves the cursor, which no log can
            ascii=not terminal,
            dynamic_ncols=terminal,
            file=sys.stderr if terminal else _Lines(),
        )
        _steady(self._bar)
        if terminal and not delay:
            _bars.append(self._bar)

    def step(self, count: int = 1, **shown: object) -> None:
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(count)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        _bars[:] = [bar for bar in _bars if bar is not self._bar]  # tqdm's own == compares places
        self._bar.close()


def table(rows: list[list[str]], header: list[str]) -> Iterator[str]:
    """Markdown lines of a table whose columns are padded to read well as plain text too."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    yield "| " + " | ".join(str(c).ljust(w) for c, w in zip(header, widths, strict=True)) + " |"
    yield "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    for row in rows:
        yield "| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
