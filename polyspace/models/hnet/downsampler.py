"""Chunks -> tokens: merge down to a budget, then pool each chunk's cells by learned attention."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyspace.models.hnet.encoder import Cells, take_rows
from polyspace.models.hnet.routing import Routing
from polyspace.utils.misc import full_precision, wide

FARTHEST = 60.0  # a logit counts as at most so far below the clip's highest: no chunk's weights vanish in fp32 or bf16


@dataclass(frozen=True)
class Chunks:
    """tokens (B,M,D), centroids (B,M,3) in cells, sizes (B,M) in cells (fractions allowed), valid (B,M), and the
    assignment (B,V,M) of visible cells, rows of real cells summing to 1. Padded slots are 0."""

    tokens: Float[Tensor, "B M D"]
    centroids: Float[Tensor, "B M 3"]
    sizes: Float[Tensor, "B M"]
    valid: Bool[Tensor, "B M"]
    assignment: Float[Tensor, "B V M"]


class LearnedAttentionPooling(nn.Module):
    """z_k = Σ_i w_ik f_i with w_ik ∝ A_ik·exp(⟨query_h, f_i⟩): a learned query token a head weighs a chunk's cells.

    Each head pools its own slice of the features, so that a chunk of one cell is that cell unchanged. Queries start at
    0: the plain mean over the assignment. `learned` False keeps it that. Slots above the budget are merged into kept
    ones (`merge`): those of the highest learned score with `select`, else the largest.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        learned: bool = True,
        neighbours: int = 4,
        pull: float = 1.0,
        temperature: float = 0.1,
        select: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.neighbours, self.pull, self.temperature = heads, neighbours, pull, temperature
        self.query = nn.Linear(dim, heads, bias=False) if learned else None
        if self.query is not None:
            nn.init.zeros_(self.query.weight)
        self.score = nn.Linear(dim, 1) if select else None

    def forward(
        self,
        cells: Cells,
        routing: Routing,
        most: int | None = None,
        saliency: Float[Tensor, "B V"] | None = None,
    ) -> Chunks:
        """Merge above `most` slots, pool; `saliency` ≥ 0 multiplies a cell's weight."""
        assignment, valid = routing.assignment(cells.valid), routing.valid
        if most is not None and valid.shape[1] > most:
            merged, valid = self.merge(cells, routing, assignment, most)
            with full_precision(assignment):
                assignment = assignment @ merged
        tokens = self.pool(routing.fine, assignment, saliency)
        mass, centroids = self.places(cells, assignment)
        keep = valid[..., None]
        return Chunks(
            torch.where(keep, tokens, 0),
            torch.where(keep, centroids, 0),
            torch.where(valid, mass, 0),
            valid,
            assignment,
        )

    def places(
        self, cells: Cells, assignment: Float[Tensor, "B V M"]
    ) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M 3"]]:
        """Cells a slot stands for, and their mean place, in fp32 or wider."""
        with full_precision(assignment):
            mass = assignment.sum(1)
            coords = cells.coords.to(assignment.dtype)
            return mass, assignment.transpose(1, 2) @ coords / mass.clamp_min(1e-6)[..., None]

    def pool(
        self, fine: Float[Tensor, "B V D"], assignment: Float[Tensor, "B V M"], saliency: Float[Tensor, "B V"] | None
    ) -> Float[Tensor, "B M D"]:
        weight = torch.ones(*fine.shape[:2], self.heads, dtype=fine.dtype, device=fine.device)
        if self.query is not None:
            score = wide(self.query(fine)).masked_fill(~(assignment > 0).any(2, keepdim=True), float("-inf"))
            below = score - score.amax(1, keepdim=True).detach().nan_to_num(neginf=0.0)
            weight = below.clamp_min(-FARTHEST).exp().to(fine.dtype)
        if saliency is not None:
            weight = weight * saliency.to(weight.dtype)[..., None]
        weighted = fine.unflatten(-1, (self.heads, -1)) * weight[..., None]
        a = assignment.to(fine.dtype).transpose(1, 2)  # (B,M,V)
        total = (a @ weight).clamp_min(torch.finfo(a.dtype).tiny)
        return ((a @ weighted.flatten(2)).unflatten(-1, (self.heads, -1)) / total[..., None]).flatten(2)

    def merge(
        self, cells: Cells, routing: Routing, assignment: Float[Tensor, "B V M"], num_chunks: int
    ) -> tuple[Float[Tensor, "B M S"], Bool[Tensor, "B S"]]:
        """Slots -> kept slots: kept ones map to themselves, the others to the `neighbours` nearest kept ones with
        weights softmax(cos(z_r, z_k)/temperature − pull·distance² + log σ(score_k)): z means of the cells' own
        features, distance in cells between centroids (a k-NN graph), the last term with a learned score only."""
        mass, place = self.places(cells, assignment)
        with full_precision(assignment):
            mean = assignment.transpose(1, 2) @ cells.x.to(assignment.dtype) / mass.clamp_min(1e-6)[..., None]
        z = F.normalize(mean, dim=-1)
        score = mass if self.score is None else self.score(self.pool(routing.fine, assignment, None)).squeeze(-1)
        ranked = torch.where(routing.valid, score.detach(), float("-inf"))
        order = ranked.argsort(dim=1, descending=True, stable=True)  # ties must not depend on the batch
        kept = order[:, :num_chunks].sort(1).values  # (B,S)
        kept_valid = routing.valid.gather(1, kept)
        logits = z @ take_rows(z, kept).transpose(1, 2) / self.temperature
        distance = torch.cdist(place.float(), take_rows(place, kept).float()).square()
        if self.score is not None:  # this is what the score learns from
            logits = logits + F.logsigmoid(score.gather(1, kept))[:, None]
        logits = (logits - self.pull * distance).masked_fill(~kept_valid[:, None], float("-inf"))
        near = distance.masked_fill(~kept_valid[:, None], float("inf"))
        bound = near.topk(min(self.neighbours, num_chunks), dim=-1, largest=False).values[..., -1:]
        weights = logits.masked_fill(near > bound, float("-inf")).softmax(-1)
        weights = torch.where(kept_valid[:, None], weights, 0).nan_to_num(0)
        own = torch.zeros_like(weights)
        slot = torch.arange(num_chunks, device=kept.device).expand_as(kept)
        own[torch.arange(len(kept), device=kept.device)[:, None], kept, slot] = 1
        is_kept = torch.zeros_like(routing.valid).scatter(1, kept, kept_valid)
        return torch.where(is_kept[..., None], own, weights).to(assignment.dtype), kept_valid
