"""Which token each cell of a clip belongs to: plain arrays, for those who draw or count."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ChunkMap:
    """owner (t,h,w): the token of each cell, 0 … tokens − 1; centroids (M,3): (time, row, column) in cells; sizes (M,):
    how many cells a token stands for, fractions where a cell is shared; prob (t,h,w): the gate's p that a chunk begins,
    1 where there is no gate or nothing before."""

    owner: NDArray[np.int64]
    centroids: NDArray[np.float32]
    sizes: NDArray[np.float32]
    prob: NDArray[np.float32]

    @property
    def tokens(self) -> int:
        return len(self.sizes)

    def begins(self) -> NDArray[np.bool_]:
        """(t,h,w): the cell before it in time belongs to another token, or there is none."""
        out = np.ones(self.owner.shape, bool)
        out[1:] = self.owner[1:] != self.owner[:-1]
        return out

    def beginnings(self) -> NDArray[np.int64]:
        """(n,3): where each token that owns cells begins: its first step, and of its cells there (row, column) the one
        nearest to their middle."""
        out = []
        for token in np.unique(self.owner):
            cells = np.argwhere(self.owner == token)
            first = cells[cells[:, 0] == cells[0, 0]]
            out.append(first[((first - first.mean(0)) ** 2).sum(1).argmin()])
        return np.array(out)

    def arrays(self, name: str = "") -> dict[str, NDArray[Any]]:
        """For a file of arrays; `from_arrays` reads them back."""
        return {f"{name}{key}": getattr(self, key) for key in ("owner", "centroids", "sizes", "prob")}

    @classmethod
    def from_arrays(cls, arrays: Any, name: str = "") -> "ChunkMap":
        return cls(*(arrays[f"{name}{key}"] for key in ("owner", "centroids", "sizes", "prob")))


def tubelets(grid: tuple[int, int, int]) -> ChunkMap:
    """Every cell a token of its own: what an encoder has that does not choose."""
    t, h, w = grid
    places = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 3)
    cells = t * h * w
    owner = np.arange(cells).reshape(grid)
    return ChunkMap(owner, places.astype(np.float32), np.ones(cells, np.float32), np.ones(grid, np.float32))
