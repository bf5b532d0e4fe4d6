"""What a worker process owes the run that started it."""

import os
import threading
import time
from multiprocessing import connection, parent_process
from typing import Any

EVERY = 0.1  # seconds between two looks at whether the parent lives


def end_with_parent() -> None:
    """This process, a worker of another, ends soon after that one, however that ended; nothing in a process that no
    other has started through multiprocessing."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: Any) -> None:
    if os.getppid() == parent.pid:  # forked workers hold each other's sentinels open, so they look themselves
        while os.getppid() == parent.pid:
            time.sleep(EVERY)
    else:  # a fork server stands in between
        connection.wait([parent.sentinel])
    os._exit(1)
