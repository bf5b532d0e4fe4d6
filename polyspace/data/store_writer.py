"""A feature store in the making: finished batches lie in a hidden folder beside it, so that a killed run finds them
again and ends with the same bytes."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyspace.data.feature_store import FORMAT, VERSION, FeatureStore
from polyspace.utils.array_file import disk_errors
from polyspace.utils.checkpoint_io import (
    load_metadata,
    load_tensors,
    save_tensors,
    sha256_file,
    sha256_json,
    write_sealed,
)
from polyspace.utils.errors import UserError
from polyspace.utils.folders import clear_left_over
from polyspace.utils.lock import drop_lock, take_lock

SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class ClipResult:
    """How one clip fared: frames in the file, or why it failed; `note` for a damaged but usable file."""

    frames: int
    reason: str | None = None
    note: str | None = None


class StoreWriter:
    """Collects batches in any order, from any process; `finish` turns them into shards and a manifest.

    Batch b covers slots b·batch … of the clip list. Its part holds the features of its readable clips, so the result
    does not depend on which process made it or when a run was cut.
    """

    def __init__(self, path: Path, settings: dict[str, Any], batch: int) -> None:
        self.path, self.settings, self.batch = Path(path), settings, batch
        self.fingerprint = sha256_json(settings)
        self._work = sha256_json([self.fingerprint, batch])[:12]
        self.partial = self.path.parent / f".{self.path.stem}.{self._work}.partial"
        self.lock = self.path.parent / f".{self.path.stem}.lock"  # of the store, whatever its settings
        self._lock: Any = None

    def open(self) -> None:
        """Hold the store against a second run and make the work folder."""
        words = f"another run is writing {self.path}; wait for it or choose another --out"
        with disk_errors(self.partial):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self.lock, words)
            self.partial.mkdir(exist_ok=True)
        for folder in (self.path.parent, self.partial):
            clear_left_over(folder)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None}

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            drop_lock(self._lock, self.lock)
            self._lock = None

    def part(self, index: int) -> Path:
        return self.partial / f"batch_{index:07d}.safetensors"

    def write_part(self, index: int, features: Mapping[str, Tensor], results: list[ClipResult]) -> None:
        """Store one batch as one file, its report in the file's metadata."""
        report = json.dumps([[r.frames, r.reason, r.note] for r in results])
        about = {"report": report, "sum": _sum(features, report)}
        save_tensors(self.part(index), features, about, sync_folder=False)

    def done(self, index: int) -> bool:
        """Whether a batch is there whole; a part that can't be read, or has changed, is thrown away."""
        part = self.part(index)
        if not part.is_file():
            return False
        try:
            about = load_metadata(part)
            sound = about["sum"] == _sum(load_tensors(part), about["report"])
        except (UserError, KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            part.unlink()
        return sound

    def results(self, index: int) -> list[ClipResult]:
        return [ClipResult(*entry) for entry in json.loads(load_metadata(self.part(index))["report"])]

    def finish(self, clips: list[dict[str, Any]], head: dict[str, Any], row_bytes: int) -> FeatureStore:
        """Write shards, then the manifest, then remove the work folder and shards of an older store."""
        per_shard = max(1, SHARD_BYTES // max(1, row_bytes) // self.batch) * self.batch
        listed: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        shards: list[dict[str, Any]] = []
        for first in range(0, len(clips), per_shard):
            file = f"{self.path.stem}-{self._work}-{len(shards):05d}.safetensors"
            rows, batches = [], range(first // self.batch, -(-min(first + per_shard, len(clips)) // self.batch))
            for index in batches:
                for clip, result in zip(self._slots(clips, index), self.results(index), strict=True):
                    if result.reason is not None:
                        failed.append({"id": clip["id"], "reason": result.reason})
                        continue
                    entry = clip | {"frames": result.frames, "shard": len(shards), "row": len(rows)}
                    rows.append(entry | ({"note": result.note} if result.note else {}))
            if not rows:
                continue
            parts = [load_tensors(self.part(i)) for i in batches]
            names = sorted({name for part in parts for name in part})
            save_tensors(self.path.parent / file, {n: torch.cat([p[n] for p in parts if n in p]) for n in names})
            shards.append({"file": file, "rows": len(rows), "sha256": sha256_file(self.path.parent / file)})
            listed += rows
        manifest = {"format": FORMAT, "format_version": VERSION, "fingerprint": self.fingerprint, **head}
        manifest |= {
            "settings": self.settings,
            "batch": self.batch,
            "shards": shards,
            "clips": listed,
            "failed": failed,
        }
        write_sealed(self.path, manifest)
        self._clean({shard["file"] for shard in shards})
        return FeatureStore(self.path)

    def _slots(self, clips: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
        return clips[index * self.batch : (index + 1) * self.batch]

    def _clean(self, keep: set[str]) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        for old in self.path.parent.glob(f"{self.path.stem}-*.safetensors"):
            if old.name not in keep:
                old.unlink()
        self.close()


def _sum(features: Mapping[str, Tensor], report: str) -> str:
    """A part's own sum: parts wait on the disk for a run to go on, and no manifest tells what they should be."""
    digest = hashlib.sha256(report.encode())
    for name in sorted(features):
        digest.update(f"{name} {tuple(features[name].shape)}".encode())
        digest.update(features[name].contiguous().numpy().data)
    return digest.hexdigest()
