"""What a worker process owes the run that started it."""

import os
import threading
import time
from multiprocessing import parent_process

EVERY = 0.1  # seconds between two looks at whether the parent lives


def end_with_parent() -> None:
    """This process, a worker of another, ends soon after that one, however that ended; nothing in a process that no
    other has started through multiprocessing."""
    parent = parent_process()
    if parent is not None and parent.pid is not None:
        threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    os._exit(1)
