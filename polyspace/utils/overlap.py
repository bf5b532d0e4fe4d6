"""Read, work and write at once: while some blocks are worked on, the next is read and the last is written."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
AHEAD = 2  # blocks in flight beside those that are worked on


def overlapped(
    spans: Iterable[S],
    read: Callable[[S, int], None],
    work: Callable[[S, int], None],
    write: Callable[[S, int], None],
    workers: int = 1,
) -> Generator[S, None, None]:
    """Take every span through `read`, `work` and `write`; yields what is written. Reads are one at a time and in order,
    and so are writes; `workers` threads work.

    The integers are slots: `read(span, i)` fills input buffer i of `workers` + AHEAD, `work(span, i)` turns input
    buffer i into output buffer i, `write(span, i)` empties it. A slot is used again only when its write has ended, so
    that memory stays the same whatever the number of spans. The first error stops all and is raised here; behind a
    span that failed none is written.
    """
    slots = workers + AHEAD
    flying: deque[tuple[S, Future[None]]] = deque()
    pools = [ThreadPoolExecutor(n, name) for n, name in ((1, "read"), (workers, "work"), (1, "write"))]
    reader, worker, writer = pools
    whole = True

    def made(ready: Future[None], span: S, slot: int) -> None:
        ready.result()
        work(span, slot)

    def written(ready: Future[None], span: S, slot: int) -> None:
        nonlocal whole
        if not whole:
            raise CancelledError
        try:
            ready.result()
            write(span, slot)
        except BaseException:
            whole = False
            raise

    try:
        for number, span in enumerate(spans):
            if len(flying) == slots:
                yield _ended(flying)
            slot = number % slots
            done = worker.submit(made, reader.submit(read, span, slot), span, slot)
            flying.append((span, writer.submit(written, done, span, slot)))
        while flying:
            yield _ended(flying)
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown()


def _ended(flying: "deque[tuple[S, Future[None]]]") -> S:
    span, future = flying.popleft()
    future.result()
    return span
