"""Read, work and write at once: while one block is worked on, the next is read and the last is written."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
DEPTH = 2  # blocks read ahead, and blocks that wait for the writer


def overlapped(
    spans: Iterable[S], read: Callable[[S, int], None], work: Callable[[S, int], None], write: Callable[[S, int], None]
) -> Generator[S, None, None]:
    """Take every span through `read`, `work` and `write`, each in its own thread and in order; yields what is written.

    The integers are slots: `read(span, i)` fills input buffer i of DEPTH + 1, `work(span, i)` turns input buffer i into
    output buffer i, `write(span, i)` empties it. A slot is used again only when its write has ended, so that memory is
    DEPTH + 1 blocks of each kind whatever the number of spans. Work runs in the caller's thread; the first error of any
    of the three stops all and is raised here.
    """
    slots, coming = DEPTH + 1, iter(spans)
    reads: deque[tuple[S, Future[None]]] = deque()
    writes: deque[tuple[S, Future[None]]] = deque()
    asked = done = 0
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:

        def ask() -> None:
            nonlocal asked
            for span in coming:
                reads.append((span, reader.submit(read, span, asked % slots)))
                asked += 1
                return

        for _ in range(DEPTH):
            ask()
        while reads:
            span, ready = reads.popleft()
            ready.result()
            ask()
            if len(writes) == slots:
                yield _ended(writes)
            work(span, done % slots)
            writes.append((span, writer.submit(write, span, done % slots)))
            done += 1
        while writes:
            yield _ended(writes)


def _ended(writes: "deque[tuple[S, Future[None]]]") -> S:
    span, future = writes.popleft()
    future.result()
    return span
