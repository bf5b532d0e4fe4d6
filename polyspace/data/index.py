"""A feature index: the vectors of one space, whose they are, and exact search in memory that does not grow.

A folder holds `vectors.npy` (n,d) float32, `ids.json` (absent where the vectors came from a bare array: row numbers are
their ids), `index.json` (what made them, sums of the files), and `index.faiss` where it was asked for.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import TypedDict

from polyspace.utils.array_file import FLOAT32, ArrayReader
from polyspace.utils.checkpoint_io import read_json, sha256_file
from polyspace.utils.errors import UserError
from polyspace.utils.reading import check_form

FORMAT, VERSION = "polyspace.index", 1
VECTORS, IDS, ABOUT, FAISS = "vectors.npy", "ids.json", "index.json", "index.faiss"
METRICS = ("cosine", "l2")
SEARCH_FLOATS = 1 << 23  # most numbers that a block of rows, or its scores, may have while searching
FAISS_ROWS = 16_384


class About(TypedDict):
    """What every index.json has; further keys are for people."""

    space: str
    dim: int
    rows: int
    metric: str
    student: str
    backbone: dict[str, Any]
    made_from: dict[str, Any]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Index:
    """A finished index. Opening reads `index.json` and the head of the array; `verify` reads all of it.

    >>> index = load_index("indexes/videomae"); scores, rows = index.search(query, 10); index.ids[rows[0]]
    """

    folder: Path
    about: dict[str, Any]

    @property
    def rows(self) -> int:
        return self.about["rows"]

    @property
    def dim(self) -> int:
        return self.about["dim"]

    @property
    def metric(self) -> str:
        return self.about["metric"]

    @property
    def array(self) -> Path:
        return self.folder / VECTORS

    @cached_property
    def vectors(self) -> np.ndarray:
        """(n,d) float32, memory-mapped, as the space's backbone or converter gave them (not of unit length)."""
        return np.load(self.array, mmap_mode="r", allow_pickle=False)

    @cached_property
    def ids(self) -> list[str] | None:
        """A name for each row, in order; None where the rows have none but their number."""
        if IDS not in self.about["sha256"]:
            return None
        self._compare(IDS)
        ids = read_json(self.folder / IDS, "ids of the index", list[str])
        if len(ids) != self.rows:
            raise UserError(f"{self.folder / IDS} does not hold {self.rows} ids")
        return ids

    def verify(self) -> None:
        """UserError if a file's bytes are not those that `index.json` was written for."""
        for name in self.about["sha256"]:
            self._compare(name)

    def _compare(self, name: str) -> None:
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if sha256_file(path) != self.about["sha256"][name]:
            raise UserError(f"{path} is damaged: its sha256 is not that of {ABOUT}")

    def search(self, query: Tensor | np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """The k rows nearest to each query (d,) or (q,d), best first: scores and row numbers, (k,) or (q,k).

        Scores are cosines, or with the metric l2 squared distances (computed in float64). Every row is compared: the
        answer is exact. Fewer than k rows give fewer results; among equal scores any order may come.
        """
        asked = torch.as_tensor(query)
        if asked.ndim not in (1, 2) or asked.shape[-1] != self.dim:
            raise UserError(f"a query of shape {tuple(asked.shape)} does not fit {self.folder}: it has {self.dim} dims")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        with torch.inference_mode():
            scores, rows = self._search(asked.reshape(-1, self.dim), min(k, self.rows))
        scores = scores.float() if self.metric == "cosine" else -scores.float()
        return (scores[0], rows[0]) if asked.ndim == 1 else (scores, rows)

    def _search(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(q,k) scores of which more is nearer, and rows."""
        likeness = _cosine if self.metric == "cosine" else _minus_squared_distance
        size = max(1, SEARCH_FLOATS // max(self.dim, len(query)))
        block = np.empty((min(size, self.rows), self.dim), FLOAT32)
        best = torch.empty(len(query), 0)
        where = torch.empty(len(query), 0, dtype=torch.int64)
        with ArrayReader(self.array) as array:
            for first in range(0, self.rows, size):
                part = block[: min(size, self.rows - first)]
                array.read(first, part)
                near, at = likeness(query, torch.from_numpy(part)).topk(min(k, len(part)), dim=1)
                best, where = torch.cat([best.to(near), near], 1), torch.cat([where, at + first], 1)
                best, kept = best.topk(min(k, best.shape[1]), dim=1)
                where = where.gather(1, kept)
        return best, where


def _cosine(query: Tensor, rows: Tensor) -> Tensor:
    return F.normalize(query.float(), dim=1) @ F.normalize(rows, dim=1).T


def _minus_squared_distance(query: Tensor, rows: Tensor) -> Tensor:
    """In float64: the difference of large squares would drown small distances in float32."""
    q, x = query.double(), rows.double()
    return (2 * q @ x.T - q.square().sum(1, keepdim=True) - x.square().sum(1)).clamp_max(0)


def load_index(folder: str | Path) -> Index:
    """A finished index by its folder; UserError if it is none, of another version, or its files don't fit."""
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        raise UserError(f"{folder} is not an index: it has no {ABOUT}")
    about = read_json(folder / ABOUT, "index")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{folder / ABOUT} does not describe an index (format {FORMAT!r} expected)")
    if about.get("format_version") != VERSION:
        found = about.get("format_version")
        raise UserError(f"{folder} has format version {found!r:.40}, this release reads version {VERSION}")
    needed = {"space", "dim", "rows", "metric", "student", "backbone", "stand_in", "translated", "made_from", "sha256"}
    if absent := needed - about.keys():
        raise UserError(f"{folder / ABOUT} is incomplete: it lacks {', '.join(sorted(absent))}")
    check_form(about, About, folder / ABOUT, "index")
    if others := about["sha256"].keys() - {VECTORS, IDS, FAISS}:
        raise UserError(f"{folder / ABOUT} names a file that no index has: {min(others)!r}")
    if about["metric"] not in METRICS:
        raise UserError(f"{folder / ABOUT} names an unknown metric {about['metric']!r}")
    with ArrayReader(folder / VECTORS) as array:
        if (array.rows, array.dim, array.dtype) != (about["rows"], about["dim"], FLOAT32):
            held, said = f"{array.dtype} {(array.rows, array.dim)}", (about["rows"], about["dim"])
            raise UserError(f"{folder / VECTORS} holds {held}, but {ABOUT} says float32 {said}")
    return Index(folder, about)


def import_faiss() -> Any:
    """The library, or a UserError that names the extra."""
    try:
        import faiss
    except ImportError as error:
        raise UserError("--format faiss needs FAISS: pip install 'polyspace[index]'") from error
    return faiss


def write_faiss(folder: Path, rows: int, dim: int, metric: str) -> Path:
    """`index.faiss` beside the vectors: IndexFlatIP on unit vectors for cosine, IndexFlatL2 for l2.

    FAISS holds all vectors in memory while it builds and writes a flat index.
    """
    faiss = import_faiss()
    flat = faiss.IndexFlatIP(dim) if metric == "cosine" else faiss.IndexFlatL2(dim)
    block = np.empty((min(FAISS_ROWS, rows), dim), FLOAT32)
    with ArrayReader(folder / VECTORS) as array:
        for first in range(0, rows, FAISS_ROWS):
            part = block[: min(FAISS_ROWS, rows - first)]
            array.read(first, part)
            flat.add(F.normalize(torch.from_numpy(part), dim=1).numpy() if metric == "cosine" else part)
    faiss.write_index(flat, str(folder / FAISS))
    return folder / FAISS
