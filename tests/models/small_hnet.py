import torch

from polyspace.models.hnet.encoder import Cells
from polyspace.models.vjepa.vit import HNetViT

T, S, U = 6, 32, 8


GRID = (3, 4, 4)


def encoder(**changes) -> HNetViT:
    plain = dict(dim=32, depth=2, heads=2, unit=U, cell_dim=32, cell_depth=1, conv_width=4)
    return HNetViT(**(plain | changes)).eval()


def clips(n: int = 3) -> torch.Tensor:
    """Still ground with a moving patch, so that gates have something to decide."""
    video = torch.randn(n, 1, S, S, 3).repeat(1, T, 1, 1, 1)
    for t in range(T):
        video[:, t, 8:20, 3 * t : 3 * t + 10] += 2.0
    return video


def hide(kind: str, n: int = 3) -> torch.Tensor:
    if kind == "tubes":  # another number of columns in each clip
        hidden = torch.zeros(n, 4, 4, dtype=torch.bool)
        for i in range(n):
            hidden[i].view(-1)[torch.randperm(16)[: 4 + 3 * i]] = True
        return hidden
    hidden = torch.zeros(n, *GRID, dtype=torch.bool)
    if kind == "future":
        for i in range(n):
            hidden[i, 1 + i % 2 :] = True
    else:  # any cells
        hidden = torch.rand(n, *GRID) < 0.5
    return hidden


def pixels(hidden: torch.Tensor) -> torch.Tensor:
    """The mask over cells or columns as a mask over pixels (B,T,S,S,1)."""
    if hidden.ndim == 3:
        hidden = hidden[:, None].expand(-1, GRID[0], -1, -1)
    return hidden.repeat_interleave(2, 1).repeat_interleave(U, 2).repeat_interleave(U, 3)[..., None]


def clips_of(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return clips()


def packed(coords: list[list[int]], features: torch.Tensor) -> Cells:
    _, h, w = GRID
    index = torch.tensor([[a * h * w + b * w + c for a, b, c in coords]])
    return Cells(features[None], index, torch.ones_like(index, dtype=torch.bool), GRID)
