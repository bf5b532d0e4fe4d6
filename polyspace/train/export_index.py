"""`polyspace export-index`: the clip features of one space of a feature store, as an index."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from polyspace.config import Config, parse, run_command
from polyspace.data.feature_store import FeatureStore
from polyspace.data.index import IDS, VECTORS, Index, import_faiss
from polyspace.data.index_writer import IndexWriter
from polyspace.train.alignment.translation import Translation, open_translation
from polyspace.utils.array_file import ArrayWriter
from polyspace.utils.checkpoint_io import write_json
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.log import Progress, say
from polyspace.utils.run_info import run_info

BATCH = 4096


class ExportConfig(Config):
    features: Path = Field(description="manifest of a feature store")
    space: str = Field(description="a space of the store, or with --converters one that the store lacks")
    out: Path = Field(description="folder of the index")
    format: Literal["npy", "faiss"] = Field("npy", description="faiss: index.faiss too (all vectors in memory)")
    metric: Literal["cosine", "l2"] = Field("cosine", description="by which the index is searched")
    converters: Path | None = Field(None, description="translate the student's features with this file")
    overwrite: bool = Field(False, description="replace an index that was made with other settings")


def _translation(config: ExportConfig, store: FeatureStore) -> Translation | None:
    """What translates, or None where the store holds the space; UserError where neither gives it."""
    if config.space in store.spaces:
        if config.converters is not None:
            raise UserError(f"{store.path} holds {config.space} itself; leave out --converters")
        return None
    if config.converters is None:
        known = did_you_mean(config.space, store.spaces)
        raise UserError(f"--space {config.space} is not in {store.path}, and no --converters are given{known}")
    found = open_translation(config.converters, config.space)
    found.check(store.student, store.spaces[store.student], str(store.path))
    return found


def _head(config: ExportConfig, store: FeatureStore, translation: Translation | None) -> dict[str, Any]:
    if translation is not None:
        return translation.head(len(store), config.metric)
    space = store.spaces[config.space]
    return {
        "space": config.space,
        "dim": space["dim"],
        "rows": len(store),
        "metric": config.metric,
        "student": store.student,
        "backbone": space,
        "stand_in": space["backend"] == "identity",
        "translated": None,
    }


def _vectors(store: FeatureStore, space: str, translation: Translation | None) -> Iterator[np.ndarray]:
    if translation is None:
        yield from (block.float().numpy() for block in store.blocks(space))
        return
    for block in store.blocks(store.student):
        for part in block.float().split(BATCH):
            with torch.inference_mode():
                yield translation.converter(part).numpy()


def export_index(config: ExportConfig) -> Index:
    """Make (or find finished) the index of these settings."""
    store = FeatureStore(config.features)
    translation = _translation(config, store)
    if len(store) == 0:
        raise UserError(f"{store.path} holds no clips")
    if config.format == "faiss":
        import_faiss()
    made_from: dict[str, Any] = {"features": store.fingerprint, "space": config.space, "metric": config.metric}
    made_from |= {"format": config.format, "converters": translation.sha256 if translation else None}
    writer = IndexWriter(config.out, made_from, config.overwrite)
    if (old := writer.finished()) is not None:
        say(f"{config.out} is complete already ({old.rows} vectors)")
        return old
    head = _head(config, store, translation)
    writer.open()
    try:
        with (
            ArrayWriter(writer.folder / VECTORS, len(store), head["dim"]) as array,
            Progress(len(store), "export-index", "row") as bar,
        ):
            for block in _vectors(store, config.space, translation):
                if not np.isfinite(block).all():
                    raise UserError(f"{store.path} holds vectors of {config.space} that are not finite")
                array.write(array.done, block)
                bar.step(len(block))
            assert array.done == len(store), f"{array.done} rows, the manifest says {len(store)}"
            array.sync()
        write_json(writer.folder / IDS, store.ids)
        index = writer.publish(head, array.sha256, run_info("export-index", config), config.format == "faiss")
    finally:
        writer.close()
    if translation is not None:
        translation.say_expected()
    return index


def main(argv: Sequence[str]) -> int:
    config = parse(
        ExportConfig,
        argv,
        prog="polyspace export-index",
        about="Write the clip features of one space of a feature store as an index: vectors.npy, ids.json, index.json.",
        example="polyspace export-index --features features/features_hmdb51_train.json --space vjepa2 "
        "--out indexes/vjepa2",
    )
    index = export_index(config)
    note = "  (identity stand-in)" if index.about["stand_in"] else ""
    say(f"{index.rows} vectors of {index.dim} dims, {index.about['space']}, {index.metric} -> {config.out}{note}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
