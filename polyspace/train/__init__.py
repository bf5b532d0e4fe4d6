"""The loop, the phases, and the commands that train and evaluate."""

from collections.abc import Callable
from typing import Any

from polyspace.train.action_posttrain import check_action, run_action
from polyspace.train.language_align import check_language, run_language
from polyspace.train.pretrain import run_pretrain
from polyspace.train.probe_train import check_probe, run_probe

# name -> (RunConfig, folder, Machine) -> what the pipeline manifest says about it
PHASES: dict[str, Callable[..., dict[str, Any]]] = {
    "pretrain": run_pretrain,
    "language": run_language,
    "probe": run_probe,
    "action": run_action,
}

# name -> what can be said against a phase's configuration before any work
CHECKS: dict[str, Callable[[Any], None]] = {
    "language": check_language,
    "probe": check_probe,
    "action": check_action,
}
