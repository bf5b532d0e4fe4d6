"""Disks that are small or read-only."""

import subprocess
from pathlib import Path

import pytest


class Disk:
    """A file system of its own at `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()

    def mount(self, options: str) -> None:
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.place)], capture_output=True, text=True
            )
        except OSError as error:
            pytest.skip(f"no mount command here ({error})")
        if done.returncode:
            pytest.skip(f"a file system can't be mounted here: {done.stderr.strip()}")

    def change(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.place)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], capture_output=True)
