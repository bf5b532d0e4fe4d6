import pytest
import torch
from small_hnet import clips, encoder, packed

from polyspace.models.hnet.downsampler import LearnedAttentionPooling
from polyspace.models.hnet.routing import SparseRouting


def test_renumbering_the_slots_leaves_the_grid_unchanged():
    model = encoder()
    e = model.encode(clips())
    order = torch.randperm(e.tokens.shape[1])
    x = model.widen(e.chunks.tokens) + model.position(e.centroids, e.sizes)
    shuffled = model.vit(x[:, order], ~e.valid[:, order])
    grid = e.chunks.assignment[:, :, order] @ shuffled
    assert torch.allclose(grid, e.on_grid(), atol=1e-5)


@pytest.mark.parametrize("apart", [1.0, 30.0, 1000.0])
def test_a_chunk_of_one_cell_is_that_cell_however_its_score_compares(apart):
    pooling = LearnedAttentionPooling(8, 2)
    torch.nn.init.ones_(pooling.query.weight)
    fine = torch.randn(1, 4, 8)
    fine[0, 1] -= apart
    assert torch.allclose(pooling.pool(fine, torch.eye(4)[None], None), fine, rtol=1e-5, atol=1e-5)


def test_a_chunk_is_the_mean_of_its_cells_until_queries_are_learned():
    cells = packed([[0, 0, 0], [1, 0, 0], [2, 0, 0]], torch.randn(3, 32))
    routing = SparseRouting(32, 1, depth=0, fixed=(3, 1, 1))(cells)
    pooling = LearnedAttentionPooling(32, 1)
    chunks = pooling(cells, routing)
    assert torch.allclose(chunks.tokens[0, 0], cells.x[0].mean(0), atol=1e-6)
    assert chunks.centroids[0, 0].tolist() == [1.0, 0.0, 0.0] and chunks.sizes[0, 0] == 3
    with torch.no_grad():
        pooling.query.weight.normal_()
    weight = (cells.x[0] @ pooling.query.weight[0]).softmax(0)
    assert torch.allclose(pooling(cells, routing).tokens[0, 0], weight @ cells.x[0], atol=1e-5)


def test_a_surplus_chunk_joins_what_it_resembles_not_what_is_nearest():
    """Three columns that touch nowhere: the short one lies nearer to the first and looks like the last."""
    a, b = 8 * torch.eye(32)[:2]
    places = [[0, 0, 0], [0, 1, 1], [0, 3, 3], [1, 0, 0], [1, 3, 3]]
    cells = packed(places, torch.stack([a, b, b, a, b]))
    routing = SparseRouting(32, 1, depth=0)(cells, 2, 2)
    assert routing.valid.sum() == 3
    chunks = LearnedAttentionPooling(32, 1)(cells, routing, most=2)
    assert chunks.valid.sum() == 2 and chunks.assignment[0, 1, 1] > 0.9


def test_cells_without_saliency_do_not_enter_their_chunks_token():
    model = encoder(stem="tubelet", fixed=(3, 1, 1), cell_depth=0)
    video = torch.randn(2, 6, 32, 32, 3)
    other = video.clone()
    other[:, :2] += 1  # the first step of cells
    salient = torch.ones(2, 3, 4, 4)
    salient[:, 0] = 0
    first, second = (model.encode(v, saliency=salient).tokens for v in (video, other))
    assert torch.equal(first, second)
    assert not torch.allclose(model.encode(video).tokens, model.encode(other).tokens)
    even = model.encode(video, saliency=5 * torch.ones_like(salient)).tokens
    assert torch.allclose(even, model.encode(video).tokens, atol=1e-5)
