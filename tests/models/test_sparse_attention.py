import pytest
import torch

from polyspace.models.hnet.blocks3d import block_layout
from polyspace.models.hnet.sparse_attention import NativeSparseAttention

GRID = (4, 6, 8)
CELLS = 4 * 6 * 8


def attention(**changes) -> NativeSparseAttention:
    return NativeSparseAttention(16, 2, **({"block": (2, 3, 4), "num_selected": 2} | changes)).double()


def only(module: NativeSparseAttention, branch: int) -> NativeSparseAttention:
    """Gate 1 for one branch, 0 for the others."""
    with torch.no_grad():
        module.gate.bias.fill_(-1e9)
        module.gate.bias[branch * module.heads : (branch + 1) * module.heads] = 1e9
    return module


def test_every_cell_has_a_place_of_its_own_in_its_block():
    layout = block_layout((3, 4, 5), (2, 2, 2), 1)
    assert len(set(layout.place.tolist())) == 60
    assert layout.num_blocks == 2 * 2 * 3
    assert layout.place[1 * 20 + 1 * 5 + 1] == 7  # the far corner of the first block
    assert layout.place[2 * 20] == 6 * 8  # first cell of the block behind it


def test_the_halo_is_the_block_and_what_touches_it():
    layout = block_layout((4, 4, 4), (2, 2, 2), 1)
    inside = layout.halo[0][layout.halo[0] >= 0]
    assert sorted(inside.tolist()) == sorted(
        layout.place[t * 16 + y * 4 + x].item() for t in range(3) for y in range(3) for x in range(3)
    )


def test_with_all_blocks_selected_and_only_that_branch_it_is_dense_attention():
    module = only(attention(num_selected=8), 1)
    x = torch.randn(2, CELLS, 16, dtype=torch.float64)
    assert torch.allclose(module(x, GRID, dense=False), module(x, GRID, dense=True))


def test_with_a_reach_over_the_whole_grid_the_local_branch_is_dense_attention():
    module = only(attention(reach=8), 2)
    x = torch.randn(1, CELLS, 16, dtype=torch.float64)
    assert torch.allclose(module(x, GRID, dense=False), module(x, GRID, dense=True))


def test_the_compressed_branch_attends_to_block_means():
    module = only(attention(block=(4, 6, 4)), 0)  # two blocks: the left and the right half
    x = torch.randn(1, CELLS, 16, dtype=torch.float64)
    q, k, v = module.qkv(x)[0].chunk(3, -1)
    right = torch.arange(CELLS) % 8 >= 4
    km, vm = (torch.stack([part[~right].mean(0), part[right].mean(0)]) for part in (k, v))
    for i in (3, 77):
        heads = [(q[i, s] @ km[:, s].T / 8**0.5).softmax(-1) @ vm[:, s] for s in (slice(0, 8), slice(8, 16))]
        expected = module.out(torch.cat(heads))
        assert torch.allclose(module(x, GRID, dense=False)[0, i], expected)


def test_selection_takes_the_block_that_the_query_likes_best():
    module = only(attention(num_selected=1, block=(4, 6, 4)), 1)
    with torch.no_grad():
        module.qkv.weight.copy_(torch.eye(16, dtype=torch.float64).repeat(3, 1))
        module.qkv.bias.zero_()
    x = torch.zeros(1, CELLS, 16, dtype=torch.float64)
    right = torch.arange(CELLS) % 8 >= 4
    x[0, right, 0], x[0, ~right, 1] = 3.0, 3.0
    out = module(x, GRID, dense=False)
    changed = x.clone()
    changed[0, ~right, 5] = 1.0  # content of the block that the right half has not selected
    assert torch.equal(module(changed, GRID, dense=False)[0, right], out[0, right])
    assert not torch.equal(module(changed, GRID, dense=False)[0, ~right], out[0, ~right])


def by_masks(module: NativeSparseAttention, x: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """The function as it is written, for one clip: each branch a softmax over rows or block means under a mask."""
    layout = block_layout(GRID, module.block, module.reach)
    place = layout.place[cells]
    block = place // layout.size
    q, k, v = (part.unflatten(-1, (module.heads, -1)) for part in module.qkv(x).chunk(3, -1))
    names = block.unique()  # blocks with a visible cell
    mean = {b.item(): torch.stack([part[block == b].mean(0) for part in (q, k, v)]) for b in names}
    qm, km, vm = torch.stack([mean[b.item()] for b in names]).unbind(1)
    scale = q.shape[-1] ** -0.5
    liked = (
        (torch.einsum("ahd,bhd->hab", qm, km) * scale).softmax(-1).mean(0).topk(min(module.num_selected, len(names)))
    )
    chosen = {b.item(): names[liked.indices[i]] for i, b in enumerate(names)}
    selected = torch.stack([torch.isin(block, chosen[b.item()]) for b in block])
    local = torch.stack([torch.isin(place, layout.halo[b]) for b in block])

    def among(keys, values, seen=None):
        logits = torch.einsum("nhd,mhd->hnm", q, keys) * scale
        logits = logits if seen is None else logits.masked_fill(~seen, float("-inf"))
        return torch.einsum("hnm,mhd->nhd", logits.softmax(-1), values)

    parts = torch.stack([among(km, vm), among(k, v, selected), among(k, v, local)], 1)
    gates = module.gate(x).sigmoid().unflatten(-1, (3, module.heads))
    return module.out((parts * gates[..., None]).sum(1).flatten(1))


@pytest.mark.parametrize("dense", [True, False])
def test_padding_and_absent_cells_change_nothing(dense):
    module = attention()
    cells = torch.randperm(CELLS)[:50].sort().values[None]
    x = torch.randn(1, 50, 16, dtype=torch.float64)
    y = module(x, GRID, cells, dense=dense)
    padded = torch.cat([x, 1e3 * torch.randn(1, 7, 16, dtype=torch.float64)], 1)
    index = torch.cat([cells, torch.zeros(1, 7, dtype=torch.long)], 1)
    pad = torch.arange(57)[None] >= 50
    assert torch.allclose(module(padded, GRID, index, pad, dense=dense)[:, :50], y)


@pytest.mark.parametrize("selected", [1, 2, 5])
def test_hidden_cells_and_padding_are_as_in_the_function_written_with_masks(selected):
    module = attention(num_selected=selected)
    torch.nn.init.normal_(module.gate.weight)
    cells = torch.stack([torch.randperm(CELLS)[:40].sort().values for _ in range(3)])
    cells[2] = torch.arange(40)  # in few blocks
    counts = [40, 23, 38]
    pad = torch.arange(40) >= torch.tensor(counts)[:, None]
    x = torch.randn(3, 40, 16, dtype=torch.float64, requires_grad=True)
    y = module(x, GRID, torch.where(pad, 0, cells), pad, dense=False)
    (y * ~pad[..., None]).pow(3).sum().backward()
    for i, n in enumerate(counts):
        alone = x[i, :n].detach().requires_grad_()
        expected = by_masks(module, alone, cells[i, :n])
        expected.pow(3).sum().backward()
        assert torch.allclose(y[i, :n], expected, atol=1e-12)
        assert torch.allclose(x.grad[i, :n], alone.grad, atol=1e-12) and not x.grad[i, n:].any()


def test_a_whole_grid_is_the_same_with_its_cells_named():
    module = attention(block=(3, 4, 5))  # blocks that the grid does not fill
    x = torch.randn(2, CELLS, 16, dtype=torch.float64)
    named = module(x, GRID, torch.arange(CELLS).expand(2, -1), dense=False)
    assert torch.allclose(module(x, GRID, dense=False), named, atol=1e-12)
    assert torch.allclose(named[0], by_masks(module, x[0], torch.arange(CELLS)), atol=1e-12)


def test_sparse_rows_of_one_clip_do_not_see_another():
    module = attention()
    x = torch.randn(2, CELLS, 16, dtype=torch.float64)
    alone = module(x[:1], GRID, dense=False)
    assert torch.allclose(module(x, GRID, dense=False)[:1], alone)


def test_gradients_match_finite_differences():
    module = NativeSparseAttention(4, 2, block=(1, 2, 2), num_selected=1, reach=1).double()
    x = torch.randn(1, 2 * 3 * 2, 4, dtype=torch.float64, requires_grad=True)
    torch.nn.init.normal_(module.gate.weight)
    assert torch.autograd.gradcheck(lambda t: module(t, (2, 3, 2), dense=False), x)


def test_every_parameter_gets_a_gradient_in_both_forms():
    for dense in (True, False):
        module = attention()
        module(torch.randn(1, CELLS, 16, dtype=torch.float64), GRID, dense=dense).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_a_wrong_number_of_cells_is_an_error():
    with pytest.raises(ValueError, match="do not fill the grid"):
        attention()(torch.randn(1, 5, 16, dtype=torch.float64), GRID)
