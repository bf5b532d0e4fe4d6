"""A disk that fills up: one sentence, nothing half-written, and the same line goes on to the same bits."""

from pathlib import Path

import pytest
from small_runs import MAINS, result

PAGE = 4096


def pages(place: Path) -> int:
    """How much of a disk the files under `place` take."""
    return sum(-(-p.stat().st_size // PAGE) for p in place.rglob("*") if p.is_file())


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("name", MAINS)
def test_a_full_disk_is_a_sentence_and_with_room_the_same_line_ends_in_the_same_bits(
    runs, disk, monkeypatch, capsys, name, share
):
    expected = runs.expected(name, monkeypatch)
    needed = pages(runs.sizes[name])
    disk.mount(f"size={max(3, int(needed * share)) * PAGE}")
    monkeypatch.chdir(disk.place)
    capsys.readouterr()
    assert runs.run(name) == 2
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: cannot write ") and "Traceback" not in said
    assert "out" in last and ("No space left on device" in last or "the disk is full" in last)
    result(disk.place)  # what is there is whole
    disk.change("size=200m")
    assert runs.run(name) == 0
    assert result(disk.place) == expected
