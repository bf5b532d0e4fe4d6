"""Files are whole or absent, and nothing in them runs."""

import os
import pickle

import pytest
import torch

from polyspace.utils import checkpoint_io as io
from polyspace.utils.errors import UserError


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "x.bin"
    io.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), io.atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.bin"]


def test_loading_refuses_a_file_that_would_execute_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(UserError, match=r"evil\.pt is damaged or not a file of ours"):
        io.load_torch(path)
    torch.save({"a": Evil()}, path)
    with pytest.raises(UserError, match="not loaded"):
        io.load_torch(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("cut", [0, 5, 100])
def test_cut_files_are_sentences(tmp_path, cut):
    path = tmp_path / "t.safetensors"
    io.save_tensors(path, {"a": torch.ones(30)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"t\.safetensors is damaged"):
        io.load_tensors(path)
    (tmp_path / "j.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"j\.json is not valid JSON"):
        io.read_json(tmp_path / "j.json")


def test_equal_tensors_give_equal_bytes(tmp_path):
    tensors = {"b": torch.randn(3, 2), "a": torch.randn(2).half()}
    io.save_tensors(tmp_path / "1", tensors)
    io.save_tensors(tmp_path / "2", {k: v.clone() for k, v in tensors.items()})
    assert io.sha256_file(tmp_path / "1") == io.sha256_file(tmp_path / "2")


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc"), reason="needs a folder that can't be written")
def test_a_folder_that_cannot_be_written_is_named_before_any_work():
    with pytest.raises(UserError, match="/proc/nowhere"):
        io.try_writing(io.Path("/proc/nowhere"))
