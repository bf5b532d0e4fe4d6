"""What every run writes beside its results: resolved config, version, command line, environment."""

import datetime
import json
import os
import platform
import sys
from typing import Any

from polyspace.version import __version__


def run_info(command: str, config: Any = None) -> dict[str, Any]:
    """A plain dict for run.json; `config` is a pydantic model or None."""
    import numpy
    import torch

    return {
        "command": command,
        "argv": sys.argv,
        "version": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "config": None if config is None else json.loads(config.model_dump_json()),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
