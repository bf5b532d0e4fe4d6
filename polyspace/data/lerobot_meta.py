"""What lies in a LeRobot data set's meta/: info.json, episodes and tasks, as JSON lines (v2.1) or parquet (v3)."""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from polyspace.data.records import inside
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.reading import FAULTS, brief, read_json, read_json_lines, reads

_PLACEHOLDERS = {"episode_index", "episode_chunk", "chunk_index", "file_index", "video_key"}
_SPEC = re.compile(r"(0?\d{1,2})?d?")
MAX_ROWS = 1 << 24  # of one parquet file: 93 hours at 50 Hz; LeRobot's own have some 100 MB


class Info(TypedDict):
    """What is used of info.json."""

    fps: float
    data_path: str
    features: dict[str, dict[str, Any]]
    video_path: NotRequired[str | None]
    chunks_size: NotRequired[int | None]
    splits: NotRequired[dict[str, Any] | None]


@dataclass(frozen=True)
class Meta:
    """`episodes` are rows by index, `tasks` texts by index, `features` what info.json says of each column."""

    fps: float
    data_path: str
    video_path: str
    chunks_size: int
    features: dict[str, dict[str, Any]]
    splits: dict[str, str]
    episodes: dict[int, dict[str, Any]]
    tasks: dict[int, str]

    @property
    def cameras(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature.get("dtype") == "video"]

    def data_file(self, root: Path, index: int) -> Path:
        row = self.episodes[index]
        places = {"chunk_index": row.get("data/chunk_index"), "file_index": row.get("data/file_index")}
        return inside(root, self._fill("data_path", index, places))

    def video_file(self, root: Path, index: int, key: str) -> Path:
        row = self.episodes[index]
        places = {name: row.get(f"videos/{key}/{name}") for name in ("chunk_index", "file_index")}
        return inside(root, self._fill("video_path", index, {**places, "video_key": key}))

    def _fill(self, template: str, index: int, values: Mapping[str, Any]) -> str:
        """The template with its placeholders filled; UserError for one that is not known or has no value."""
        text = getattr(self, template)
        if not text:
            raise UserError(f"meta/info.json has no {template}")
        known = {"episode_index": index, "episode_chunk": index // self.chunks_size, **values}
        out = []
        for literal, name, spec, conversion in string.Formatter().parse(text):
            out.append(literal)
            if name is None:
                continue
            if name not in _PLACEHOLDERS or conversion or not _SPEC.fullmatch(spec or ""):
                raise UserError(f"meta/info.json: {template} {text!r} has a placeholder that is not known: {name!r}")
            if known.get(name) is None:
                raise UserError(f"meta/info.json: {template} needs {name}, which meta/episodes lacks for {index}")
            out.append(format(known[name] if name == "video_key" else int(known[name]), spec or ""))
        return "".join(out)

    def chosen(self, split: str | None) -> list[int]:
        """Episode indices of a split, `from:to` in info.json; all of them for None."""
        if split is None:
            return sorted(self.episodes)
        if split == "validation" and split not in self.splits:
            split = "val"
        if split not in self.splits:
            raise UserError(f"--split {split}: meta/info.json has no such split{did_you_mean(split, self.splits)}")
        match = re.fullmatch(r"(\d+):(\d+)", self.splits[split])
        if not match:
            raise UserError(f"meta/info.json: split {split} is {self.splits[split]!r}, not `from:to`")
        return [i for i in sorted(self.episodes) if int(match[1]) <= i < int(match[2])]


def read_meta(root: Path) -> Meta:
    """All of meta/; UserError names the file that lacks something."""
    file = root / "meta" / "info.json"
    info = read_json(file, "LeRobot info", Info)
    with reads(file.parent, "LeRobot's info.json, or what stands beside it in"):
        return Meta(
            fps=float(info["fps"]),
            data_path=info["data_path"],
            video_path=info.get("video_path") or "",
            chunks_size=info.get("chunks_size") or 1000,
            features=info["features"],
            splits={k: str(v) for k, v in (info.get("splits") or {}).items()},
            episodes={int(row["episode_index"]): row for row in _rows(root / "meta", "episodes")},
            tasks=_tasks(root / "meta"),
        )


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows of `name`.jsonl, `name`.parquet or the parquet files below `name`/; statistics are passed over."""
    lines = folder / f"{name}.jsonl"
    if lines.is_file():
        return read_json_lines(lines, f"LeRobot {name}")
    single = folder / f"{name}.parquet"
    files = [single] if single.is_file() else sorted((folder / name).rglob("*.parquet"))
    if not files:
        raise UserError(f"lerobot: none of {lines}, {single} and {folder / name}/*/*.parquet is there")
    return [row for file in files for row in read_parquet(file, skip="stats/").to_pylist()]


def _tasks(folder: Path) -> dict[int, str]:
    """Task index -> text; in parquet the text is the frame's index, under whatever name."""
    out = {}
    for row in _rows(folder, "tasks"):
        texts = [value for value in row.values() if isinstance(value, str)]
        if texts:
            out[int(row["task_index"])] = texts[0]
    return out


def read_parquet(file: Path, columns: list[str] | None = None, skip: str | None = None) -> Any:
    """A pyarrow table of those of `columns` that are there (None: all but those that begin with `skip`)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("LeRobot data sets need pyarrow: pip install 'polyspace[robot]'") from error
    if not file.is_file():
        raise UserError(f"parquet file {file} does not exist")
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            there = list(parquet.schema_arrow.names)
            if parquet.metadata.num_rows > MAX_ROWS:  # repeats are stored once: a few bytes can hold billions of rows
                raise UserError(f"parquet file {file} says that it has {parquet.metadata.num_rows} rows")
            if columns is not None:
                return parquet.read([name for name in there if name in columns])
            return parquet.read([name for name in there if not (skip and name.startswith(skip))])
    except UserError:
        raise
    except (pyarrow.ArrowException, *FAULTS) as error:
        raise UserError(f"parquet file {file} is damaged ({brief(error)})") from error
