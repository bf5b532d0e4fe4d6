"""Features on disk: a JSON manifest beside safetensors shards; whole or absent, checked on every load.

`features_{dataset}_{split}.json` lists spaces, classes, clips (id, label, group, shard, row), failed and missing
clips, and each shard's sha256. data/store_writer.py makes them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from polyspace.data.store_form import check_manifest
from polyspace.utils.checkpoint_io import load_tensor, load_tensors, read_json, sha256_file
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.log import warn
from polyspace.utils.reading import reads

FORMAT, VERSION = "polyspace.features", 1


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


def find_store(folders: list[Path], dataset: str, split: str, fingerprint: str) -> FeatureStore | None:
    """The first finished store of this data set and split in `folders` whose fingerprint is the wanted one."""
    for folder in folders:
        path = folder / manifest_name(dataset, split)
        if path.is_file():
            store = FeatureStore(path)
            if store.fingerprint == fingerprint and store.is_sound():
                return store
    return None
