"""Features on disk: a JSON manifest beside safetensors shards; whole or absent, checked on every load.

`features_{dataset}_{split}.json` lists spaces, classes, clips (id, label, group, shard, row), failed and missing
clips, and each shard's sha256. While a store is being made, finished batches lie in a hidden folder beside it; a
killed run finds them again and ends with the same bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from polyspace.data.store_form import check_manifest
from polyspace.utils.array_file import disk_errors
from polyspace.utils.checkpoint_io import (
    load_metadata,
    load_tensor,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    sha256_json,
    write_sealed,
)
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.folders import clear_left_over
from polyspace.utils.lock import drop_lock, take_lock
from polyspace.utils.log import warn
from polyspace.utils.reading import reads

FORMAT, VERSION = "polyspace.features", 1
SHARD_BYTES = 256 << 20


def manifest_name(dataset: str, split: str) -> str:
    return f"features_{dataset}_{split}.json"


class FeatureStore:
    """A finished store. Opening reads the manifest; features are read, and their shards verified, when asked for.

    >>> store = FeatureStore("features/features_hmdb51_train.json"); store.features("vjepa2")  # (n, D)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest = read_json(self.path, "feature store")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"{self.path} is not a feature store (format {FORMAT!r} expected)")
        if manifest.get("format_version") != VERSION:
            found = manifest.get("format_version")
            raise UserError(
                f"{self.path} has format version {found!r:.40}, this release reads version {VERSION}; featurize again"
            )
        absent = {"fingerprint", "settings", "student", "spaces", "classes", "clips", "shards"} - manifest.keys()
        if absent:
            raise UserError(f"{self.path} is incomplete: it lacks {', '.join(sorted(absent))}")
        check_manifest(manifest, self.path)
        self.manifest: dict[str, Any] = manifest
        self._verified: set[str] = set()

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def student(self) -> str:
        return self.manifest["student"]

    @property
    def spaces(self) -> dict[str, dict[str, Any]]:
        return self.manifest["spaces"]

    @property
    def classes(self) -> list[str]:
        return self.manifest["classes"]

    @property
    def ids(self) -> list[str]:
        return [clip["id"] for clip in self.manifest["clips"]]

    @property
    def groups(self) -> list[str]:
        """The source video of each clip."""
        return [clip["group"] for clip in self.manifest["clips"]]

    @property
    def stand_ins(self) -> list[str]:
        """Spaces whose features come from the identity stand-in."""
        return [name for name, space in self.spaces.items() if space["backend"] == "identity"]

    def __len__(self) -> int:
        return len(self.manifest["clips"])

    def labels(self) -> Int64[Tensor, " n"]:
        """Class ids; a store with unlabelled clips is a UserError."""
        labels = [clip["label"] for clip in self.manifest["clips"]]
        if any(label is None for label in labels):
            raise UserError(f"{self.path}: {labels.count(None)} of {len(labels)} clips have no label")
        with reads(self.path, "feature store"):
            return torch.tensor(labels, dtype=torch.int64)

    def features(self, space: str) -> Float[Tensor, "n D"]:
        """Clip features of one space, in the manifest's order."""
        if len(self) == 0:
            return torch.empty(0, self._space(space)["dim"])
        with reads(self.path, "feature store"):
            found = torch.cat(list(self.blocks(space)))
        if found.shape != (len(self), self._space(space)["dim"]) or not found.is_floating_point():
            raise UserError(
                f"{self.path} tells of {len(self)} clips in space {space}, its shards hold {list(found.shape)}"
            )
        return found

    def blocks(self, space: str) -> Iterator[Float[Tensor, "rows D"]]:
        """`features` shard by shard; of a shard that holds other spaces or tokens too, only this space is read."""
        self._space(space)
        for number, shard in enumerate(self.manifest["shards"]):
            yield self._finite(load_tensor(self._verify(shard), space, "feature shard"), space, number)

    def is_sound(self) -> bool:
        """Whether every shard is there with the manifest's sha256."""
        try:
            for shard in self.manifest["shards"]:
                self._verify(shard)
        except UserError as error:
            warn(str(error))
            return False
        return True

    def _verify(self, shard: dict[str, Any]) -> Path:
        path = self.path.parent / shard["file"]
        if path.name not in self._verified:
            if not path.is_file():
                raise UserError(f"feature shard {path} is missing; featurize again")
            if sha256_file(path) != shard["sha256"]:
                raise UserError(f"feature shard {path} is damaged: its sha256 is not the manifest's; featurize again")
            self._verified.add(path.name)
        return path

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """Every shard's tensors by space name, each verified against its sha256 once."""
        for number, shard in enumerate(self.manifest["shards"]):
            tensors = load_tensors(self._verify(shard), "feature shard")
            yield {name: self._finite(value, name, number) for name, value in tensors.items()}

    def _finite(self, value: Tensor, space: str, shard: int) -> Tensor:
        """The features; UserError that names a clip whose aren't numbers, which nothing could be fitted to."""
        bad = (~torch.isfinite(value).flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            clips = [c["id"] for c in self.manifest["clips"] if c["shard"] == shard and c["row"] == bad[0]]
            which = f"clip {clips[0]!r}" if clips else f"row {bad[0]} of shard {shard}"
            raise UserError(f"{self.path}: features of {space} are not finite ({which}); featurize again")
        return value

    def _space(self, name: str) -> dict[str, Any]:
        if name not in self.spaces:
            raise UserError(f"{self.path} has no space '{name}'{did_you_mean(name, self.spaces)}")
        return self.spaces[name]


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


def find_store(folders: list[Path], dataset: str, split: str, fingerprint: str) -> FeatureStore | None:
    """The first finished store of this data set and split in `folders` whose fingerprint is the wanted one."""
    for folder in folders:
        path = folder / manifest_name(dataset, split)
        if path.is_file():
            store = FeatureStore(path)
            if store.fingerprint == fingerprint and store.is_sound():
                return store
    return None
