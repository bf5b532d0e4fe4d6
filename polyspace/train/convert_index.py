"""`polyspace convert-index`: an index, or any .npy of vectors, from the student's space into a teacher's.

Reading, the matrix products and writing overlap. Every `rows` rows are put on the disk and then written down as done: a
killed run goes on from there and ends in the same bytes (on the same machine).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from polyspace.config import Config, parse, run_command
from polyspace.data.index import ABOUT, IDS, VECTORS, Index, import_faiss, load_index
from polyspace.data.index_writer import IndexWriter
from polyspace.train.alignment.conversion import Conversion, UnfitSource
from polyspace.train.alignment.translation import Translation, open_translation
from polyspace.utils.array_file import ArrayReader, ArrayWriter
from polyspace.utils.checkpoint_io import sha256_file, sha256_json
from polyspace.utils.errors import UserError
from polyspace.utils.folders import copy_file
from polyspace.utils.log import Progress, say, warn
from polyspace.utils.run_info import run_info


class ConvertConfig(Config):
    index: Path = Field(description="folder of an index, or a .npy file of (n, d) float32 or float16")
    converters: Path = Field(description="file written by train-converter")
    space: str = Field(description="the teacher's space to convert into")
    out: Path = Field(description="folder of the result")
    rows: int = Field(65_536, ge=1, description="rows between two points that a killed run goes on from")
    batch: int = Field(1024, ge=1, description="rows a matrix product")
    metric: Literal["cosine", "l2"] | None = Field(None, description="by default the index's, or cosine")
    format: Literal["npy", "faiss"] = Field("npy", description="faiss: index.faiss too (all vectors in memory)")
    verify: bool = Field(True, description="compare the index's sha256 while it is read")
    overwrite: bool = Field(False, description="replace an index that was made with other settings")


class Source:
    """What is converted: the vectors' file, and the index around it if there is one."""

    def __init__(self, path: Path) -> None:
        named = path.parent if path.name == VECTORS and (path.parent / ABOUT).is_file() else path
        self.index = load_index(named) if named.is_dir() else None
        if self.index is None and path.suffix != ".npy" and path.is_file():
            raise UserError(f"--index {path} is neither the folder of an index nor a .npy file")
        self.path = self.index.array if self.index else path
        with ArrayReader(self.path) as array:
            self.rows, self.dim = array.rows, array.dim
            self.identity = self.index.about["sha256"][VECTORS] if self.index else sha256_json(array.fingerprint())
        self.time = self.path.stat().st_mtime_ns

    def check(self, translation: Translation) -> None:
        """UserError unless the converter reads vectors such as these."""
        d = translation.dims[0]
        if self.index is None:
            if self.dim != d:
                student = translation.student
                raise UserError(f"{self.path} has {self.dim} dims, {translation.path} converts from {student} with {d}")
            return
        about = self.index.about
        if about["translated"] is not None:
            origin = about["translated"]["from"]
            raise UserError(f"{self.index.folder} holds translations from {origin}; convert the index they came from")
        translation.check(about["space"], about["backbone"], str(self.index.folder))


def _made_from(config: ConvertConfig, source: Source, translation: Translation, metric: str) -> dict[str, Any]:
    """All that the result's bytes depend on."""
    return {
        "index": source.identity,
        "ids": source.index.about["sha256"].get(IDS) if source.index else None,
        "converters": translation.sha256,
        "space": config.space,
        "metric": metric,
        "format": config.format,
        "rows": config.rows,
        "batch": config.batch,
    }


def convert_index(config: ConvertConfig) -> Index:
    """Make (or find finished) the translated index; see the module's first lines."""
    source, translation = Source(config.index), open_translation(config.converters, config.space)
    source.check(translation)
    if config.out.resolve() == source.path.resolve().parent:
        raise UserError(f"--out {config.out} is where the vectors to convert lie; give another folder")
    if config.format == "faiss":
        import_faiss()
    metric = config.metric or (source.index.metric if source.index else "cosine")
    made_from = _made_from(config, source, translation, metric)
    writer = IndexWriter(config.out, made_from, config.overwrite, source.time)
    if (old := writer.finished()) is not None:
        say(f"{config.out} is complete already ({old.rows} vectors)")
        return old
    if source.index is None:
        of = f"{translation.student} ({translation.about['spaces'][translation.student]['checkpoint']})"
        say(f"{source.path} does not say whose vectors it holds; they are taken to be clip features of {of}")
    progress = writer.open()
    try:
        start = time.perf_counter()
        sha256, done = _convert(config, source, translation, writer, progress)
        seconds = time.perf_counter() - start
        _copy_ids(source, writer)
        report = {"rows": source.rows - done, "seconds": seconds}
        run = run_info("convert-index", config) | {"report": report}
        head = translation.head(source.rows, metric)
        return writer.publish(head, sha256, run, config.format == "faiss")
    except UnfitSource:
        writer.discard()
        raise
    finally:
        writer.close()


def _convert(
    config: ConvertConfig, source: Source, translation: Translation, writer: IndexWriter, progress: dict[str, Any]
) -> tuple[str, int]:
    """Write the vectors; returns their file's sha256 and how many were there from a killed run."""
    digest = source.identity if source.index is not None and config.verify else None
    with _target(source, translation, writer, progress) as target, ArrayReader(source.path) as array:
        done = target.done
        if done:
            say(f"continuing: {done} of {source.rows} vectors are done")
        conversion = Conversion(array, target, translation.converter, config.rows, config.batch, writer.record, digest)
        with Progress(source.rows, "convert-index", "row", initial=done) as bar:
            conversion.run(bar.step)
        if source.path.stat().st_mtime_ns != source.time:
            raise UnfitSource(f"{source.path} was changed while it was read; run the same line again")
        return target.sha256, done


def _target(source: Source, translation: Translation, writer: IndexWriter, progress: dict[str, Any]) -> ArrayWriter:
    """The file to write, behind what a killed run has left if that is sound."""
    path, dim = writer.folder / VECTORS, translation.dims[1]
    if progress:
        try:
            target = ArrayWriter(path, source.rows, dim, progress["rows_done"])
            if target.sha256 == progress["sha256"]:
                return target
            target.close()
        except (UserError, ValueError) as error:
            warn(str(error))
        warn(f"{path}, left by a killed run, is damaged; beginning again")
    return ArrayWriter(path, source.rows, dim)


def _copy_ids(source: Source, writer: IndexWriter) -> None:
    """The ids as they are, byte by byte; none for a bare array."""
    if source.index is None or IDS not in source.index.about["sha256"]:
        return
    target = writer.folder / IDS
    copy_file(source.index.folder / IDS, target)
    if sha256_file(target) != source.index.about["sha256"][IDS]:
        raise UnfitSource(f"{source.index.folder / IDS} is damaged: its sha256 is not that of its index")


def main(argv: Sequence[str]) -> int:
    config = parse(
        ConvertConfig,
        argv,
        prog="polyspace convert-index",
        about="Move an index, or any .npy of vectors, from the student's space into a teacher's; memory stays flat.",
        example="polyspace convert-index --index indexes/vjepa2 --converters checkpoints/converters/converters_ep10.pt "
        "--space videomae --out indexes/videomae",
    )
    index = convert_index(config)
    open_translation(config.converters, config.space).say_expected()
    say(f"{index.rows} vectors of {index.dim} dims, {index.about['space']}, {index.metric} -> {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
