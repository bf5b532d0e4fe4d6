"""The run-time checker of our signatures in tests: an int is welcome where a float is asked for."""

import inspect
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` without the checker, so that a test reaches the function's own refusals, or may hand it stand-ins."""
    return inspect.unwrap(function)
