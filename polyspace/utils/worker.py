"""What a worker process owes the run that started it, and work handed out to such processes."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, parent_process
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from polyspace.utils.errors import UserError

Job, Done = TypeVar("Job"), TypeVar("Done")

EVERY = 0.1  # seconds between two looks at whether the parent lives


def end_with_parent() -> None:
    """This process, a worker of another, ends soon after that one, however that ended; nothing in a process that no
    other has started through multiprocessing."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def map_in_processes(
    work: Callable[[Job], Done],
    jobs: Iterable[Job],
    workers: int,
    died: str,
    ready: Callable[[], None] = end_with_parent,
    context: BaseContext | None = None,
) -> Iterator[Done]:
    """What `work` makes of each job, in their order. UserError with the words `died` where a process is lost; jobs that
    have not begun when the caller stops are dropped."""
    with ProcessPoolExecutor(workers, context, ready) as pool:
        try:
            yield from pool.map(work, jobs, chunksize=4)
        except BrokenProcessPool as error:
            raise UserError(died) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _watch(parent: Any) -> None:
    if os.getppid() == parent.pid:  # forked workers hold each other's sentinels open, so they look themselves
        while os.getppid() == parent.pid:
            time.sleep(EVERY)
    else:  # a fork server stands in between
        connection.wait([parent.sentinel])
    os._exit(1)
