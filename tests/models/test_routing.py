import pytest
import torch
from small_hnet import GRID, S, T, U, clips, encoder, hide, packed

from polyspace.models.hnet.routing import SparseRouting
from polyspace.models.hnet.sparse_attention import NativeSparseAttention
from polyspace.models.layers import sincos_code


def test_rows_of_the_assignment_sum_to_one_on_what_is_visible():
    hidden = hide("any")
    f = encoder(max_chunks=9)(clips(), hidden)
    sums = f.assignment.sum(-1)
    assert torch.allclose(sums, (~hidden.flatten(1)).float(), atol=1e-5)
    assert torch.allclose(f.sizes.sum(1), (~hidden.flatten(1)).sum(1).float(), atol=1e-4)


@pytest.mark.parametrize("budget", [1, 5, 16, 20, 48])
@pytest.mark.parametrize("changes", [{}, {"regions": True}, {"learned_selection": True}], ids=str)
def test_a_budget_gives_as_many_chunks(changes, budget):
    f = encoder(**changes)(clips(), num_chunks=budget)
    assert f.num_chunks.tolist() == [budget] * 3
    assert torch.allclose(f.assignment.sum(-1), torch.ones(3, 48), atol=1e-5)


def test_a_cut_that_only_the_budget_wants_gives_cells_to_their_own_chunk():
    still = torch.randn(2, 1, 32, 32, 3).repeat(1, 6, 1, 1, 1)
    model = encoder()
    assert model(still).num_chunks.tolist() == [16, 16]
    cut = model.encode(still, num_chunks=40)
    assert cut.valid.sum(1).tolist() == [40, 40] and cut.sizes.min() >= 1
    own = cut.chunks.assignment.gather(2, cut.routing.own[..., None])
    assert (own >= 0.5).all()


def test_a_budget_has_at_least_one_chunk():
    for changes in ({}, {"fixed": (1, 1, 1)}, {"learned_selection": True}):
        with pytest.raises(ValueError, match="num_chunks must be at least 1"):
            encoder(**changes)(clips(), num_chunks=0)


@pytest.mark.parametrize(("block", "count", "left"), [((3, 2, 2), 4, 3), ((1, 4, 4), 3, 3), ((2, 1, 2), 16, 12)])
def test_a_fixed_grid_has_its_blocks_and_hides_what_is_hidden(block, count, left):
    model, video = encoder(fixed=block), clips()
    f = model(video)
    assert f.num_chunks.tolist() == [count] * 3 and torch.equal(f.tokens, model(video, regions=True).tokens)
    hidden = torch.zeros(3, *GRID, dtype=torch.bool)
    hidden[0, :, :2, :2] = True
    assert model(video, hidden).num_chunks.tolist() == [left, count, count]


def test_a_small_budget_merges_what_is_alike_and_keeps_what_moves():
    """A plain ground with one moving patch: the ground becomes few chunks, the patch's cells don't join them."""
    video = torch.zeros(1, T, S, S, 3)
    for t in range(T):
        video[:, t, 8:16, 4 * t : 4 * t + 8] = 3.0
    model = encoder(stem="tubelet", cell_depth=0)
    f = model(video, num_chunks=14)
    owner = f.assignment[0].argmax(-1).view(GRID)
    assert f.num_chunks[0] == 14
    ground = torch.cat([owner[:, 0].flatten(), owner[:, 2:].flatten()])
    patch = torch.stack([owner[t, 1, (2 * t * 4) // U] for t in range(3)])
    assert not set(patch.tolist()) & set(ground.tolist())


def test_a_budget_of_less_than_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        encoder()(clips(), num_chunks=0)


@pytest.mark.parametrize("threshold", [0.8, 1.0, 3.0])
def test_what_stands_still_is_one_chunk_whatever_the_gate_has_learned(threshold):
    model = encoder()
    torch.nn.init.normal_(model.routing.gate.look.weight)
    model.routing.gate.threshold.data.fill_(threshold)
    still = torch.randn(2, 1, S, S, 3).expand(-1, T, -1, -1, -1)
    assert model(still).num_chunks.tolist() == [16, 16]


def test_a_threshold_above_its_bound_finds_its_way_back():
    gate = encoder().routing.gate
    gate.threshold.data.fill_(3.0)
    gate.prob(torch.tensor([[0.5]])).sum().backward()
    assert gate.bound < 1 and gate.threshold.grad != 0


def test_still_ground_of_two_colours_and_what_crosses_it():
    """The left half is a, the right half b, and c crosses the first row, one place a step."""
    a, b, c = 8 * torch.eye(32)[:3]
    places = [[t, i, j] for t in range(3) for i in range(4) for j in range(4)]
    look = [c if i == 0 and j == t else (a if j < 2 else b) for t, i, j in places]
    cells = packed(places, torch.stack(look))
    owner = SparseRouting(32, 1, depth=0, soft=False)(cells, regions=True).own.view(3, 4, 4)
    left, right = owner[0, 1, 0], owner[0, 1, 3]
    assert left != right
    assert (owner[:, 1:, :2] == left).all() and (owner[:, 1:, 2:] == right).all()
    crossing = [owner[t, 0, t].item() for t in range(3)]
    assert len({*crossing, left.item(), right.item()}) == 5  # what moves keeps its steps apart
    apart = SparseRouting(32, 1, depth=0, soft=False)(cells)
    assert apart.valid.sum() == 13 + 2 + 3 + 2 and (apart.own.view(3, 4, 4)[0] == torch.arange(16).view(4, 4)).all()


def test_attention_among_cells_is_decided_by_the_grid_not_by_what_is_visible():
    layer = NativeSparseAttention(16, 2, block=(1, 2, 2), num_selected=1, sparse_from=48)
    x, index = torch.randn(1, 10, 16), torch.arange(10)[None]
    assert torch.equal(layer(x, GRID, index), layer(x, GRID, index, dense=False))
    assert torch.equal(layer(x, (3, 4, 3), index), layer(x, (3, 4, 3), index, dense=True))


def test_blocks_share_one_layout_of_the_cells(monkeypatch):
    places = [(t, i, j) for t in range(3) for i in range(4) for j in range(4) if (t + i + j) % 2]
    cells, routing = packed(places, torch.randn(len(places), 32)), SparseRouting(32, 2, depth=3)
    for block in routing.blocks:
        block.attention.sparse_from = 0
    x = cells.x + sincos_code(cells.coords, 32)
    for block in routing.blocks:
        x = block(x, cells.grid, cells.index, None)  # each lays them out for itself
    asked, lay_out = [], NativeSparseAttention.lay_out
    monkeypatch.setattr(NativeSparseAttention, "lay_out", lambda *a: asked.append(a) or lay_out(*a))
    assert torch.equal(routing.contextualise(cells), routing.norm(x)) and len(asked) == 1
