"""H-Net encoders in a form that torch.export can trace: a budget of slots for every clip, merging as one operator.

Which runs merge is a loop over data and no graph; it becomes the operator `polyspace::chunk_slots`, whose result always
has `num_chunks` slots. An exported program runs wherever this module was imported.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyspace.models.hnet.encoder import Cells, RowFinder
from polyspace.models.hnet.gate import Likeness
from polyspace.models.hnet.regions import touching
from polyspace.models.hnet.routing import Routing, follow, merge_runs, most_probable
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.utils.misc import masked_mean


@torch.library.custom_op("polyspace::chunk_slots", mutates_args=())
def chunk_slots(
    prob: Tensor, code: Tensor, judged: Tensor, before: Tensor, grid: list[int], num_chunks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """From p, codes and the row before each cell of whole clips (B,V,…): the cells' slot, the slot before theirs and
    the row of their run's first cell, int64 (B,V); where chunks begin (B,V); slots in use (B,num_chunks)."""
    shape = (grid[0], grid[1], grid[2])
    index = torch.arange(prob.shape[1], device=prob.device).expand(prob.shape[0], -1)
    cells = Cells(code, index, torch.ones_like(judged), shape)
    cut = (prob >= 0.5) | most_probable(prob, judged, cells.valid, num_chunks)
    run, earlier, head, counts = follow(before, judged, cut, shape[0])
    goal = counts.clamp_max(num_chunks)
    if bool((counts > goal).any()):
        likeness = Likeness(code)
        edges = touching(cells, RowFinder(cells), likeness, run, before, cut & judged, counts, 0.0)
        alike = (edges.a, edges.b, edges.there & (edges.a != edges.b))
        label, counts = merge_runs(alike, likeness, run, cells.valid, counts, goal)
        run, earlier = label.gather(1, run), label.gather(1, earlier)
    valid = torch.arange(num_chunks, device=prob.device) < counts[:, None]
    return run.contiguous(), earlier.contiguous(), head.contiguous(), cut, valid


@chunk_slots.register_fake
def _(
    prob: Tensor, code: Tensor, judged: Tensor, before: Tensor, grid: list[int], num_chunks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    own, earlier, head = (torch.empty_like(prob, dtype=torch.int64) for _ in range(3))
    return own, earlier, head, torch.empty_like(judged), judged.new_empty(prob.shape[0], num_chunks)


class ExportableEncoder(nn.Module):
    """video (B,T,H,W,3) normalised -> tokens (B,M,D), valid (B,M), and the mean of a clip's tokens, its feature (B,D).

    M is `num_chunks` for a chunk encoder, every cell for tubelets. Same numbers as the encoder with that budget.
    ValueError for an encoder whose downsampler chooses by a learned score.
    """

    def __init__(self, encoder: HNetViT | TubeletViT, num_chunks: int | None = None) -> None:
        super().__init__()
        if isinstance(encoder, HNetViT):
            if num_chunks is None or num_chunks < 1:
                raise ValueError(
                    f"a chunk encoder is exported with a budget of tokens, not with num_chunks={num_chunks}"
                )
            if encoder.downsampler.score is not None:
                raise ValueError("an encoder that selects chunks by a learned score can't be exported")
        self.encoder, self.num_chunks = copy.deepcopy(encoder).eval().requires_grad_(False), num_chunks
        self.encoder.vit.groups = 1

    def forward(self, video: Float[Tensor, "B T H W 3"]) -> tuple[Float[Tensor, "B M D"], Tensor, Float[Tensor, "B D"]]:
        if isinstance(self.encoder, TubeletViT):
            encoded = self.encoder.encode(video)
            return encoded.tokens, encoded.valid, encoded.tokens.mean(1)
        cells = self.encoder.stem(video)
        chunks = self.encoder.downsampler(cells, self.route(cells))
        x = self.encoder.widen(chunks.tokens)
        x = x + self.encoder.position(chunks.centroids, chunks.sizes).to(x.dtype)
        x = torch.where(chunks.valid[..., None], x, 0)
        bias = chunks.sizes.clamp_min(1e-6).log().to(x.dtype) if self.encoder.size_bias else None
        tokens = self.encoder.vit._run(x, (~chunks.valid, bias), 1)
        return tokens, chunks.valid, masked_mean(tokens, chunks.valid)

    def route(self, cells: Cells) -> Routing:
        """As SparseRouting with that budget, for clips with nothing hidden."""
        assert isinstance(self.encoder, HNetViT) and self.num_chunks is not None
        routing = self.encoder.routing
        fine = routing.contextualise(cells, whole=True)
        if routing.gate is None:
            return routing.blocks_of(cells, fine, whole=True)
        _, h, w = cells.grid
        before, judged = RowFinder(cells).back(h * w, cells.index >= h * w)
        likeness = routing.gate(cells.x)
        prob = torch.where(judged, routing.gate.prob(likeness.to(before)), 1)
        own, earlier, head, cut, valid = chunk_slots(
            prob, likeness.code, judged, before.contiguous(), list(cells.grid), self.num_chunks
        )
        boundary = prob >= 0.5
        share = torch.where(boundary, prob, 1).gather(1, head) if routing.soft else torch.ones_like(prob)
        return Routing(fine, own, earlier, share, valid, prob, boundary, judged, cut)
