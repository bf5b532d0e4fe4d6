"""From what was seen to what was hidden: a light transformer over context tokens and queries."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyspace.models.layers import Block, sincos_code
from polyspace.models.vjepa.trunk import ViT, in_parts


class Predictor(nn.Module):
    """Latents at the queries' places, given context tokens at theirs.

    Context and queries carry one and the same continuous code of their coordinates; with two different codes motion
    can't be extrapolated. Hidden content comes in nowhere: a query is a learned vector plus its place.
    """

    def __init__(self, dim: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.into, self.query = nn.Linear(dim, width), nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, dim)
        self.shared_by: dist.ProcessGroup | None = None  # as in ViT

    def forward(
        self,
        tokens: Float[Tensor, "B M D"],
        places: Float[Tensor, "B M 3"],
        valid: Bool[Tensor, "B M"] | None,
        query_places: Float[Tensor, "B Q 3"],
        hints: Float[Tensor, "B Q W"] | None = None,
        query_valid: Bool[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Predictions in the queries' order; `hints` are added to the queries (e.g. a code of the size asked for).
        Rows of invalid queries hold nothing of use, and influence no other."""
        context = self.into(tokens) + sincos_code(places, self.width).to(tokens.dtype)
        queries = self.query + sincos_code(query_places, self.width).to(tokens.dtype)
        if hints is not None:
            queries = queries + hints
        x = torch.cat([context, queries], 1)
        pad = None
        if valid is not None or query_valid is not None:
            left = torch.ones_like(tokens[..., 0], dtype=torch.bool) if valid is None else valid
            right = torch.ones_like(queries[..., 0], dtype=torch.bool) if query_valid is None else query_valid
            pad = ~torch.cat([left, right], 1)
            pad = pad if bool(pad.any()) else None
        if self.shared_by is not None:
            group = self.shared_by
            x = in_parts(lambda *part: self._run(*part, group), group, x, pad)
        else:
            x = self._run(x, pad)
        return self.out(self.norm(x[:, tokens.shape[1] :]))

    def _run(self, x: Tensor, *where: Any) -> Tensor:
        for block in self.blocks:
            x = block(x, *where)
        return x


def share_tokens(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    """The ranks of `group` share the tokens of every encoder's ViT and of every predictor in `module`."""
    for part in module.modules():
        if isinstance(part, ViT | Predictor):
            part.shared_by = group
