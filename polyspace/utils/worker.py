"""What a worker process owes the run that started it, and work handed out to such processes."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
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
            end_broken(pool)
            raise UserError(died) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def result_of(future: "Future[Done]", pool: ProcessPoolExecutor, died: str) -> Done:
    """What a job of the pool gave; UserError with the words `died` where a process of it is lost, also one that was
    killed while it handed over a result: the pool would wait for the rest of it."""
    lost = False
    while not lost and not wait([future], timeout=1).done:
        lost = has_lost(pool) and not wait([future], timeout=1).done
    try:
        if not lost:
            return future.result()
        fault: Exception | None = None
    except BrokenProcessPool as error:
        fault = error
    end_broken(pool)
    raise UserError(died) from fault


def has_lost(pool: ProcessPoolExecutor) -> bool:
    """Whether one of its processes has ended, which none does by itself."""
    return bool(connection.wait([process.sentinel for process in list((pool._processes or {}).values())], 0))


def end_broken(pool: ProcessPoolExecutor) -> None:
    """A pool that has lost a process asks the others to end by SIGTERM, which some of ours leave to the main process,
    and waits for them; or it waits for the rest of a result. Neither would come, and the run could not end."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    with contextlib.suppress(AttributeError, OSError):
        pool._result_queue._writer.close()  # type: ignore[attr-defined]


def _watch(parent: Any) -> None:
    if os.getppid() == parent.pid:  # forked workers hold each other's sentinels open, so they look themselves
        while os.getppid() == parent.pid:
            time.sleep(EVERY)
    else:  # a fork server stands in between
        connection.wait([parent.sentinel])
    os._exit(1)
