"""Videos straight to an index, by whatever encodes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from polyspace.bundle.parts import Bundle
from polyspace.data.index import IDS, METRICS, VECTORS, Index
from polyspace.data.index_writer import IndexWriter
from polyspace.data.video import VideoError
from polyspace.utils.array_file import ArrayWriter
from polyspace.utils.checkpoint_io import sha256_json, write_json
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.log import Progress, warn
from polyspace.utils.run_info import run_info

BATCH = 8


def index_videos(
    encode: Callable[[list[Path]], Tensor],
    videos: Sequence[str | Path],
    out: Path,
    bundle: Bundle,
    space: str,
    metric: str,
) -> Index:
    """Write the index of these files, in their order, ids being their paths; one that lies there is replaced. Files
    that can't be read are left out with a warning and listed in index.json. UserError if none can be read."""
    if metric not in METRICS:
        raise UserError(f"metric {metric!r} is unknown{did_you_mean(metric, METRICS)}")
    paths = [Path(video) for video in videos]
    made_from = {"videos": sha256_json([str(p) for p in paths]), "student": bundle.card.identity(), "space": space}
    writer = IndexWriter(out, made_from | {"metric": metric}, overwrite=True)
    writer.finished()
    writer.open()
    try:
        kept, rows, failed = [], [], {}
        with Progress(len(paths), f"index {space}", "clip") as bar:
            for start in range(0, len(paths), BATCH):
                part = paths[start : start + BATCH]
                for path, row in _encoded(encode, part, failed):
                    kept.append(str(path))
                    rows.append(row)
                bar.step(len(part), failed=len(failed))
        if not rows:
            raise UserError(f"none of the {len(paths)} videos can be read")
        for name, reason in failed.items():
            warn(f"left out: {name}: {reason}")
        with ArrayWriter(writer.folder / VECTORS, len(rows), len(rows[0])) as array:
            array.write(0, np.stack(rows))
            array.sync()
            digest = array.sha256
        write_json(writer.folder / IDS, kept)
        head = {"space": space, "dim": len(rows[0]), "rows": len(rows), "metric": metric}
        return writer.publish(head | _told(bundle, space) | {"failed": failed}, digest, run_info("index"))
    finally:
        writer.close()


def _told(bundle: Bundle, space: str) -> dict[str, Any]:
    """What index.json says of a space: a translation is never passed off as the space itself."""
    own, known = bundle.card, bundle.spaces
    translated = None
    if bundle.converters is not None and space in bundle.converters.dims:
        expected = bundle.held_out.get(space)
        translated = {"from": own.name, "backbone": own.about(), "kind": bundle.kind, "expected": expected}
    backbone = known.get(space, own.about())
    stand_in = "identity" in (own.backend, backbone["backend"])
    return {"student": own.name, "backbone": backbone, "stand_in": stand_in, "translated": translated}


def _encoded(encode: Callable[[list[Path]], Tensor], paths: list[Path], failed: dict[str, str]) -> list[Any]:
    """(path, vector) of the readable ones: together, or where one fails, one by one."""
    try:
        return list(zip(paths, encode(paths).numpy(), strict=True))
    except VideoError:
        found = []
        for path in paths:
            try:
                found.append((path, encode([path]).numpy()[0]))
            except VideoError as error:
                failed[str(path)] = error.reason
        return found
