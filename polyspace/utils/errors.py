"""Errors that a user can act on: one sentence that names the file, flag or key at fault."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Raised for bad input; commands print its text and exit with 2, never with a traceback."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suffix for an error: `; did you mean 'x'?`, or the list of what is known where nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
