"""Videos straight to an index, by whatever encodes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from polyspace.data.index import IDS, VECTORS, Index
from polyspace.data.index_writer import IndexWriter
from polyspace.data.video import VideoError
from polyspace.models.backbones import BackboneCard
from polyspace.utils.array_file import ArrayWriter
from polyspace.utils.checkpoint_io import sha256_json, write_json
from polyspace.utils.errors import UserError
from polyspace.utils.log import Progress, warn
from polyspace.utils.run_info import run_info

BATCH = 8


def index_videos(
    encode: Callable[[list[Path]], Tensor],
    videos: Sequence[str | Path],
    out: Path,
    card: BackboneCard,
    space: str,
    about: dict[str, Any],
    metric: str,
) -> tuple[Index, dict[str, str]]:
    """Write the index of these files, in their order, ids being their paths; the files that can't be read are left out
    and come back with the reason. `about`: of the space's backbone. UserError if none can be read."""
    paths = [Path(video) for video in videos]
    made_from = {"videos": sha256_json([str(p) for p in paths]), "student": card.identity(), "space": space}
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
        head = {"space": space, "dim": len(rows[0]), "rows": len(rows), "metric": metric, "student": card.name}
        head |= {"backbone": about, "stand_in": card.backend == "identity", "translated": None, "failed": failed}
        return writer.publish(head, digest, run_info("index")), failed
    finally:
        writer.close()


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
