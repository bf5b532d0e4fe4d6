"""Where the benches find videos that nobody here made: POLYSPACE_REAL_DATA, a folder for every source."""

import os
from pathlib import Path

from polyspace.data.records import VIDEO_ENDINGS

REAL = Path(os.environ.get("POLYSPACE_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def videos_in(folder: Path) -> list[Path]:
    """Video files in it and below, in order of their paths; none where there is no such folder."""
    return sorted(p for p in folder.rglob("*") if p.suffix in VIDEO_ENDINGS)
