"""What an encoder made of a clip, as arrays to draw."""

import torch

from polyspace.models.vjepa.encoded import Encoded
from polyspace.utils.chunk_map import ChunkMap, tubelets


def chunk_maps(known: Encoded) -> list[ChunkMap]:
    """One map a clip, of a batch of which nothing was hidden."""
    t, h, w = grid = known.cells.grid
    if known.chunks is None or known.routing is None:
        return [tubelets(grid) for _ in range(len(known.tokens))]
    if known.cells.index.shape[1] != t * h * w or not bool(known.cells.valid.all()):
        raise ValueError("cells of this batch are hidden: they belong to no chunk")
    owner = known.chunks.assignment.argmax(-1).view(-1, t, h, w)
    prob = torch.where(known.routing.judged, known.routing.prob, 1.0).view(-1, t, h, w)
    out = []
    for i, valid in enumerate(known.valid):
        place = valid.long().cumsum(0) - 1  # slots without a cell are left out
        parts = (place[owner[i]], known.centroids[i][valid], known.sizes[i][valid], prob[i])
        arrays = [part.detach().cpu() for part in parts]
        out.append(ChunkMap(arrays[0].numpy(), *(part.float().numpy() for part in arrays[1:])))
    return out
