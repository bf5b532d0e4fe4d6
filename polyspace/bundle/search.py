"""Who is most like a vector: the clips of a feature store, or of an index."""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polyspace.data.feature_store import FeatureStore
from polyspace.data.index import Index, load_index
from polyspace.utils.errors import UserError


@dataclass(frozen=True)
class Neighbour:
    """A clip, and its cosine to what was asked for (of an index by l2: its squared distance)."""

    id: str
    score: float


def open_store(store: FeatureStore | Index | str | Path) -> FeatureStore | Index:
    """A path is the manifest of a feature store, or the folder of an index."""
    if isinstance(store, FeatureStore | Index):
        return store
    return load_index(store) if Path(store).is_dir() else FeatureStore(store)


def neighbours(
    store: FeatureStore | Index, rows: Float[Tensor, "n D"] | None, vector: Float[Tensor, " D"], space: str, k: int
) -> list[Neighbour]:
    """The k clips nearest to the vector, best first; `rows` are a feature store's vectors of the space, by cosine."""
    if isinstance(store, Index):
        if space != store.about["space"]:
            raise UserError(f"{store.folder} is of space {store.about['space']}, not {space}")
        score, index = store.search(vector, k)
        ids = store.ids or [str(row) for row in range(store.rows)]
    else:
        assert rows is not None
        if rows.shape[1] != len(vector):
            raise UserError(f"the query has {len(vector)} dims, {store.path} has {rows.shape[1]} in space {space}")
        score, index = (F.normalize(rows, dim=1) @ F.normalize(vector, dim=0)).topk(min(k, len(rows)))
        ids = store.ids
    return [Neighbour(ids[i], s) for i, s in zip(index.tolist(), score.tolist(), strict=True)]
