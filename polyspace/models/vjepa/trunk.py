"""The transformer behind every encoder: tubelets' and chunks' alike."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyspace.models.layers import Block
from polyspace.utils.distrib import checkpoint_sequential
from polyspace.utils.sequence import shard_sequence, unshard_sequence


class ViT(nn.Module):
    """Transformer blocks and a last norm over (B,M,D); padding is neither attended to nor returned (zeros).

    `recompute` trades time for memory: each layer's activations are computed again in the backward pass, once.
    `groups` > 1 sorts the clips of a batch by length and runs them in so many parts, each padded to its own longest:
    cheaper where lengths differ much and launches cost little. With a group in `shared_by` (see `share_tokens`) all its
    ranks come with the same sequences, and each computes its part of the tokens.
    """

    def __init__(
        self, dim: int, depth: int, heads: int, mlp_ratio: float = 4.0, recompute: bool = False, groups: int = 1
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(dim, heads, mlp_ratio) for _ in range(depth)])
        self.norm, self.recompute, self.groups = nn.LayerNorm(dim), recompute, groups
        self.shared_by: dist.ProcessGroup | None = None

    def forward(
        self,
        x: Float[Tensor, "B M D"],
        key_padding_mask: Bool[Tensor, "B M"] | None = None,
        layers: int = 1,
        key_bias: Float[Tensor, "B M"] | None = None,
        context: dist.ProcessGroup | None = None,
    ) -> Float[Tensor, "B M D"]:
        """The last layer, normed; with `layers` > 1 the mean of so many last ones (the input counts as the first), each
        normalised without affine: what data2vec asks for (arXiv 2202.03555, section 3.3). `key_bias` and
        `context` as in Attention: parts of a batch's sequences go in and come out, and gradients of the parameters are
        those of the own part, to be summed over the group.
        """
        if layers < 1:
            raise ValueError(f"layers must be at least 1, not {layers}")
        if context is None and self.shared_by is not None:
            group = self.shared_by
            return in_parts(
                lambda *part: self._run(part[0], (*part[1:], group), layers), group, x, key_padding_mask, key_bias
            )
        if context is not None:  # all ranks do the same, whatever is padding in their part
            return self._run(x, (key_padding_mask, key_bias, context), layers)
        if key_padding_mask is None or not bool(key_padding_mask.any()):
            return self._run(x, (None, key_bias), layers)
        if self.groups == 1 or len(x) < 2 * self.groups:
            return self._run(x, (key_padding_mask, key_bias), layers)
        lengths = (~key_padding_mask).sum(1)
        order = lengths.argsort(stable=True)
        parts = []
        for rows in order.chunk(self.groups):
            longest = int(lengths[rows].max())
            pad = key_padding_mask[rows, :longest]
            bias = None if key_bias is None else key_bias[rows, :longest]
            part = self._run(x[rows, :longest], (pad if bool(pad.any()) else None, bias), layers)
            parts.append(F.pad(part, (0, 0, 0, x.shape[1] - longest)))
        return torch.cat(parts)[order.argsort()]

    def _run(self, x: Float[Tensor, "B M D"], where: tuple[Any, ...], layers: int) -> Float[Tensor, "B M D"]:
        """`where`: what Attention takes beside x, the mask of padding first."""
        every = [x]
        for block in self.blocks:
            x = checkpoint_sequential([block], x, *where) if self.recompute else block(x, *where)
            if layers > 1:
                every.append(x)
        if layers == 1:
            x = self.norm(x)
        else:
            x = torch.stack([F.layer_norm(y, y.shape[-1:]) for y in every[-layers:]]).mean(0)
        return x if where[0] is None else torch.where(where[0][..., None], 0, x)


def in_parts(
    run: Callable[..., Tensor],
    group: dist.ProcessGroup,
    x: Float[Tensor, "B M D"],
    pad: Bool[Tensor, "B M"] | None,
    key_bias: Float[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B M D"]:
    """`run(x, pad, key_bias)` on this rank's part of the tokens; the whole result on every rank, which all read alike:
    so the gradients of a rank are those of its part, times the number of ranks."""
    pad = torch.zeros_like(x[..., 0], dtype=torch.bool) if pad is None else pad
    bias = None if key_bias is None else shard_sequence(key_bias, group)
    out = run(shard_sequence(x, group), shard_sequence(pad, group, value=True), bias)
    return unshard_sequence(out, group, x.shape[1])
