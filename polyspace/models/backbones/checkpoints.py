"""Where weights come from: a local folder, the hub's cache, or the hub if it can be reached."""

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polyspace.utils.checkpoint_io import sha256_file, sha256_json
from polyspace.utils.errors import UserError
from polyspace.utils.reading import check_form, read_json

_FILES = ["config.json", "preprocessor_config.json", "video_preprocessor_config.json", "*.safetensors", "*.index.json"]


class WeightsUnavailable(Exception):
    """No weights could be had; the text says why. Callers fall back to the identity stand-in or stop."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder in transformers' layout, what it is called, and the digest of its config and weights."""

    folder: Path
    name: str
    revision: str
    digest: str

    def json(self, *names: str) -> dict[str, Any] | None:
        """The first of these files that exists, parsed."""
        for name in names:
            path = self.folder / name
            if path.is_file():
                return read_json(path, "file of a checkpoint", dict[str, Any])
        return None


def find_checkpoint(name_or_path: str, revision: str | None = None) -> Checkpoint:
    """Resolve a local folder or a hub id; raises WeightsUnavailable, or UserError for a folder that isn't one."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"--checkpoint {name_or_path}: the folder has no config.json")
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"--checkpoint {name_or_path}: the folder has no *.safetensors file")
        _check_parts(folder)
        return Checkpoint(folder, name_or_path, "local", folder_digest(folder))
    if folder.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise UserError(f"--checkpoint {name_or_path}: no such folder")
    return _from_hub(name_or_path, revision)


def _check_parts(folder: Path) -> None:
    """UserError where a list of weight files names one elsewhere."""
    for path in folder.glob("*.index.json"):
        listed = read_json(path, "list of weight files", dict[str, Any]).get("weight_map")
        check_form(listed, dict[str, str], path, "list of weight files")
        for name in set(listed.values()):
            if Path(name).name != name:
                raise UserError(f"list of weight files {path} names one outside its folder: {name!r}")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """All that a checkpoint's folder needs to be loaded from elsewhere."""
    return tuple(sorted({path for pattern in _FILES for path in folder.glob(pattern)}))


def folder_digest(folder: Path) -> str:
    """Digest of config and weights, so that features know exactly which weights made them."""
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    return sha256_json([[f.name, _file_digest(str(f), f.stat().st_mtime_ns, f.stat().st_size)] for f in files])


@lru_cache(maxsize=64)
def _file_digest(path: str, mtime_ns: int, size: int) -> str:
    return sha256_file(Path(path))


def _from_hub(repo: str, revision: str | None) -> Checkpoint:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise WeightsUnavailable(f"huggingface_hub is not installed ({error})") from error

    def snapshot(local: bool) -> Path:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES, local_files_only=local))

    try:
        try:
            folder = snapshot(local=True)
            complete = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
            if not complete and hub_reachable():
                folder = snapshot(local=False)
        except LocalEntryNotFoundError:
            if not hub_reachable():
                raise WeightsUnavailable(f"{repo} is not in the local cache and the hub can't be reached") from None
            folder = snapshot(local=False)
    except HFValidationError as error:
        raise UserError(f"--checkpoint {repo} is neither a folder nor a hub id") from error
    except (HfHubHTTPError, OSError) as error:
        raise WeightsUnavailable(f"{repo} could not be fetched ({str(error).splitlines()[0]})") from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise WeightsUnavailable(f"{repo} has no config.json with *.safetensors")
    return Checkpoint(folder, repo, folder.name, folder_digest(folder))


@lru_cache(maxsize=1)
def hub_reachable(timeout_s: float = 3.0) -> bool:
    """Whether the hub answers at all; asked once, since the hub client itself retries for minutes."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=timeout_s).close()
    except OSError:
        return False
    return True
