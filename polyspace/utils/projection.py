"""Features in two dimensions, to look at: PCA, or UMAP where it is installed."""

import torch
from jaxtyping import Float
from torch import Tensor

from polyspace.utils.errors import UserError

FEW = 8  # UMAP's neighbourhoods need more


def pca_map(x: Float[Tensor, "n D"]) -> tuple[Float[Tensor, "n 2"], tuple[str, str]]:
    """The two directions of most variance, each with its larger end positive, and the words of the axes."""
    centred = x.double() - x.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    points = torch.zeros(len(x), 2, dtype=torch.float64)
    share = torch.zeros(2, dtype=torch.float64)
    kept = min(2, len(s))
    points[:, :kept] = u[:, :kept] * s[:kept]
    share[:kept] = s[:kept].square() / s.square().sum().clamp_min(1e-300)
    largest = points.abs().argmax(0)
    points = points * torch.where(points.gather(0, largest[None])[0] < 0, -1.0, 1.0)
    first, second = (f"PC {k + 1} ({v:.0%} of variance)" for k, v in enumerate(share.tolist()))
    return points.float(), (first, second)


def umap_map(x: Float[Tensor, "n D"], seed: int = 0) -> tuple[Float[Tensor, "n 2"], tuple[str, str]]:
    """UMAP by cosine. UserError without the package umap-learn."""
    try:
        from umap import UMAP
    except ImportError as error:
        raise UserError("--map umap needs the package umap-learn: pip install umap-learn") from error
    if len(x) < FEW:
        return pca_map(x)
    made = UMAP(metric="cosine", random_state=seed, n_neighbors=min(15, len(x) - 1)).fit_transform(x.numpy())
    return torch.from_numpy(made).float(), ("UMAP 1 (no unit)", "UMAP 2 (no unit)")


MAPS = {"pca": pca_map, "umap": umap_map}
