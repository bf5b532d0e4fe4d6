"""Long files written around the page cache."""

import errno
import os

import pytest

from polyspace.utils import direct_file
from polyspace.utils.direct_file import BLOCK, BUFFER, DirectFile


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("at", [0, 128, BLOCK, 3 * BLOCK + 5])
def test_the_file_is_what_was_there_and_what_was_written(tmp_path, direct, at):
    path, start = tmp_path / "f", os.urandom(at)
    parts = [os.urandom(n) for n in (1, BLOCK - 1, 7, BUFFER, 2 * BUFFER + 3, 100)]
    path.write_bytes(start)
    with DirectFile(path, at, direct) as file:
        so_far = start
        for part in parts:
            file.write(memoryview(part))
            file.sync()
            so_far += part
            assert path.read_bytes() == so_far
    with DirectFile(path, len(so_far), direct) as file:
        file.write(memoryview(b"end"))
    assert path.read_bytes() == so_far + b"end"


@pytest.mark.parametrize("where", ["open", "pwrite"])
def test_a_file_system_without_direct_writes_gets_ordinary_ones(tmp_path, monkeypatch, where):
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no direct writes at all")
    real, handles, opened = getattr(os, where), [], os.open

    def noting(path, flags, *mode):
        handle = opened(path, flags, *mode)
        handles.extend([handle] if flags & os.O_DIRECT else [])
        return handle

    def refusing(first, second, *rest):
        asked = second & os.O_DIRECT if where == "open" else first in handles
        if asked:
            raise OSError(errno.EINVAL, "no direct writes here")
        return real(first, second, *rest)

    monkeypatch.setattr(direct_file.os, "open", noting)
    monkeypatch.setattr(direct_file.os, where, refusing)
    (tmp_path / "f").touch()
    data = os.urandom(BUFFER + 11)
    with DirectFile(tmp_path / "f", 0) as file:
        file.write(memoryview(data))
        file.sync()
    assert (tmp_path / "f").read_bytes() == data
    assert bool(handles) == (where == "pwrite")


def test_other_errors_of_the_disk_are_raised(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "f").touch()
    monkeypatch.setattr(direct_file.os, "pwrite", full)
    with pytest.raises(OSError, match="full"), DirectFile(tmp_path / "f", 0) as file:
        file.write(memoryview(bytes(BUFFER)))
    with pytest.raises(OSError, match="full"), DirectFile(tmp_path / "f", 0) as file:
        file.write(memoryview(b"short"))
