"""The loop, the phases, and the commands that train and evaluate."""

from collections.abc import Callable
from typing import Any

from polyspace.train.pretrain import run_pretrain

# name -> (RunConfig, folder, device) -> what the pipeline manifest says about it
PHASES: dict[str, Callable[..., dict[str, Any]]] = {"pretrain": run_pretrain}
