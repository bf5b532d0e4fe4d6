"""What a command says: plain lines on stdout, warnings on stderr, progress with rate and ETA."""

import logging
import os
import sys
from collections.abc import Iterator


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"  # the launcher's word: importing torch for this would slow every --help


def say(text: str = "") -> None:
    """One line on stdout, from rank 0 only, flushed so that logs and pipes see it at once."""
    if _is_main():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def warn(text: str) -> None:
    """One line on stderr, from every rank."""
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


class Progress:
    """A tqdm bar on a terminal, a line every ten seconds elsewhere; nothing on other ranks.

    >>> with Progress(100, "featurize", unit="clip") as bar: bar.step(4, failed=1)
    """

    def __init__(self, total: int, name: str, unit: str = "it", initial: int = 0) -> None:
        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=name,
            unit=unit,
            initial=initial,
            disable=not _is_main(),
            mininterval=0.2 if terminal else 10.0,
            ascii=not terminal,
            dynamic_ncols=terminal,
            file=sys.stderr if terminal else _Lines(),
        )

    def step(self, count: int = 1, **shown: object) -> None:
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(count)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def table(rows: list[list[str]], header: list[str]) -> Iterator[str]:
    """Markdown lines of a table whose columns are padded to read well as plain text too."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    yield "| " + " | ".join(str(c).ljust(w) for c, w in zip(header, widths, strict=True)) + " |"
    yield "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    for row in rows:
        yield "| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
