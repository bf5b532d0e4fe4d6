"""Tokens of one grid on another: what a student sees at a place, where a teacher would have a token."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Grid = tuple[int, int, int]


def resample_tokens(tokens: Float[Tensor, "B N D"], grid: Grid, wanted: Grid) -> Float[Tensor, "B M D"]:
    """Trilinear interpolation between token grids (time, rows, columns) that cover the same clip, each token standing
    for the centre of its cell; where the wanted grid is coarser, cells are averaged first (no aliasing).

    Both grids cover the whole clip, so frames taken at other rates meet at the same share of its length.
    """
    t, h, w = grid
    if tokens.shape[1] != t * h * w:
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {t}x{h}x{w}")
    if grid == wanted:
        return tokens
    x = tokens.transpose(1, 2).unflatten(2, grid)  # (B,N,D) -> (B,D,t,h,w)
    coarse = (min(t, wanted[0]), min(h, wanted[1]), min(w, wanted[2]))
    x = F.adaptive_avg_pool3d(x, coarse)
    if coarse != wanted:
        x = F.interpolate(x, size=wanted, mode="trilinear", align_corners=False)
    return x.flatten(2).transpose(1, 2)
