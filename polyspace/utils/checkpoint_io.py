"""Files that are whole or absent: temp file, fsync, rename; safe loads; checksums.

Nothing here executes what it reads: tensors come from safetensors or from `torch.load(weights_only=True)`.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from polyspace.utils.errors import UserError
from polyspace.utils.lock import hold_file
from polyspace.utils.reading import FAULTS, SEAL, brief
from polyspace.utils.reading import read_json as read_json  # handed on: most who read tensors read JSON too
from polyspace.utils.reading import sha256_json as sha256_json

LEFT_OVER = ".polyspace.tmp"  # the end of a temporary file's name


@contextlib.contextmanager
def atomic_file(path: Path, sync_folder: bool = True) -> Iterator[BinaryIO]:
    """Write to a temporary neighbour of `path`; on a clean exit it is synced and takes its place in one step.

    Without `sync_folder` a power cut may lose the whole file, but never leaves a part of it. A full or read-only disk
    is a UserError that names the file.
    """
    path = Path(path)
    try:
        with _temporary(path) as file:
            yield file
        if sync_folder:
            sync_path(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(prefix=f".{path.name}.", suffix=LEFT_OVER, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            hold_file(file)  # tells others that it isn't left over
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temp, 0o666 & ~umask)
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise


def sync_path(path: Path) -> None:
    """What was written to a file, or the names in a folder, are on the disk when this returns."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, sync_folder: bool = True) -> None:
    with atomic_file(path, sync_folder) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """JSON with a stable layout: two runs that hold the same values write the same bytes."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """`write_json` with a sum of the content beside it, which `read_json` compares: a flipped bit is noticed."""
    plain = json.loads(json.dumps(value))  # as it will be read
    write_json(path, value | {SEAL: sha256_json(plain)})


def save_torch(path: Path, state: Mapping[str, Any]) -> None:
    """`torch.save` of plain containers and tensors, atomically."""
    try:
        with atomic_file(path) as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch's writer tells a failed write only so
            raise
        raise UserError(f"cannot write {path}: the disk is full or the write failed") from error


def load_torch(path: Path, what: str = "checkpoint") -> dict[str, Any]:
    """Load on the CPU without executing anything in the file; UserError on absence or damage."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist")
    try:
        _check_zip(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(state)
    except Exception as error:
        raise UserError(
            f"{what} {path} is damaged or not a file of ours ({type(error).__name__}); it was not loaded"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{what} {path} holds {type(state).__name__}, not a dict")
    return state


def _check_zip(path: Path) -> None:
    """Compare the parts of a torch file, a zip archive, with the sums that it holds: torch itself doesn't. It writes
    them as they are, so one that is larger than the file would swell in memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(bad)


def _check_tensors(value: Any) -> None:
    """Tensors are plain, and no larger than what the file holds of them: one number can stand for a terabyte."""
    if isinstance(value, Tensor):
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor is larger than its data")
    elif isinstance(value, Mapping):
        for item in value.values():
            _check_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_tensors(item)


def load_versioned(path: Path, kind: str, version: int, what: str, also: tuple[int, ...] = ()) -> dict[str, Any]:
    """`load_torch` of a file that says its own format and version (older ones in `also` are read too); both are checked
    and taken out."""
    state = load_torch(path, what)
    if state.pop("format", None) != kind:
        raise UserError(f"{path} is not a {what}")
    found = state.pop("format_version", None)
    if found not in (version, *also):
        raise UserError(f"{path} has format version {found!r:.40}, this release reads version {version}")
    return state


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, sync_folder: bool = True
) -> None:
    """safetensors, atomically. Byte-equal for equal content."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(plain, metadata), sync_folder)


def load_metadata(path: Path) -> dict[str, str]:
    """The strings that stand beside the tensors of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, *FAULTS) as error:
        raise UserError(f"tensor file {path} is damaged ({brief(error)})") from error


def load_tensors(path: Path, what: str = "tensor file") -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UserError(f"{what} {path} does not exist")
    try:
        return load_file(path)
    except (SafetensorError, *FAULTS) as error:
        raise UserError(f"{what} {path} is damaged ({brief(error)})") from error


def load_tensor(path: Path, name: str, what: str = "tensor file") -> Tensor:
    """One tensor of a file, without reading the others."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, *FAULTS) as error:
        raise UserError(f"{what} {path} is damaged or lacks '{name}' ({brief(error)})") from error


M = TypeVar("M", bound=nn.Module)


def load_built(make: Callable[[], M], state: Mapping[str, Tensor], where: Path) -> M:
    """The module that `make` builds, with the state in it. It is built without memory first: what a file says of sizes
    is believed only as far as its tensors go."""
    try:
        with torch.device("meta"):
            check_strict(make(), state, where)
        model = make()
    except UserError:
        raise
    except FAULTS as error:
        raise UserError(f"{where} can't be built ({brief(error)})") from error
    load_strict(model, state, where)
    return model


def tensor_names(path: Path) -> list[str]:
    """What a file holds, without reading it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, *FAULTS) as error:
        raise UserError(f"tensor file {path} is damaged ({brief(error)})") from error


def load_strict(model: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Load every tensor or say which are missing, unexpected or of another shape."""
    check_strict(model, state, where)
    model.load_state_dict(state)


def check_strict(model: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """UserError that says which tensors are missing, unexpected or of another shape."""
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise UserError(f"{where} does not fit the model: missing {missing[:3]}, unexpected {unexpected[:3]}")
    shapes = [k for k in own if own[k].shape != state[k].shape]
    if shapes:
        k = shapes[0]
        raise UserError(f"{where} does not fit the model: {k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}")


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def try_writing(folder: Path, what: Callable[[str], str] = "cannot write to {}".format) -> None:
    """Make `folder` and put a byte there, so that a read-only or full disk is found before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise UserError(f"{what(str(folder))}: {error.strerror or error}") from error
