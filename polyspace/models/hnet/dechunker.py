"""Chunks -> base grid: each cell gets the tokens of the chunks it was assigned to, with the assignment's weights."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyspace.utils.misc import straight_through


def dechunk(
    tokens: Float[Tensor, "B M D"], assignment: Float[Tensor, "B V M"], confidence: Float[Tensor, "B V"] | None = None
) -> Float[Tensor, "B V D"]:
    """y_i = c_i·Σ_k A_ik·z_k, the adjoint of the sum Σ_i A_ik·f_i that chunking makes. The soft assignment is H-Net's
    smoothing one step back: y = p·z_own + (1 − p)·z_before. Renumbering the slots changes nothing.

    c is 1 and carries the gradient of the confidence in each cell's decision from whatever loss reads y (H-Net, arXiv
    2507.07955, equation 7); in pretraining these are the variance and covariance terms, the predictor reads tokens."""
    y = assignment.to(tokens.dtype) @ tokens
    if confidence is None:
        return y
    confidence = confidence.to(y.dtype)
    return y * straight_through(torch.ones_like(confidence), confidence)[..., None]


def to_grid(
    y: Float[Tensor, "B V D"], index: Int[Tensor, "B V"], valid: Bool[Tensor, "B V"], num_cells: int
) -> Float[Tensor, "B N D"]:
    """Packed cells -> all cells of the grid, zeros where nothing was visible."""
    out = y.new_zeros(len(y), num_cells + 1, y.shape[-1])
    place = torch.where(valid, index, num_cells)
    return out.scatter(1, place[..., None].expand_as(y), y)[:, :-1]
