import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyspace.models.hnet import column_resnet
from polyspace.models.hnet.column_resnet import CausalConv3d, ColumnResNet
from polyspace.models.hnet.downsampler import LearnedAttentionPooling
from polyspace.models.hnet.encoder import Cells, cell_coords, expand_hidden, pack_visible
from polyspace.models.hnet.pos_enc import ChunkPosition
from polyspace.models.hnet.routing import SparseRouting
from polyspace.models.hnet.sparse_attention import NativeSparseAttention
from polyspace.models.layers import sincos_code
from polyspace.models.vjepa.predictor import Predictor
from polyspace.models.vjepa.vit import PRESETS, HNetViT, TubeletViT
from polyspace.utils.flops import forward_flops

T, S, U = 6, 32, 8
GRID = (3, 4, 4)


def encoder(**changes) -> HNetViT:
    plain = dict(dim=32, depth=2, heads=2, unit=U, cell_dim=32, cell_depth=1, conv_width=4)
    return HNetViT(**(plain | changes)).eval()


def clips(n: int = 3) -> torch.Tensor:
    """Still ground with a moving patch, so that gates have something to decide."""
    video = torch.randn(n, 1, S, S, 3).repeat(1, T, 1, 1, 1)
    for t in range(T):
        video[:, t, 8:20, 3 * t : 3 * t + 10] += 2.0
    return video


def hide(kind: str, n: int = 3) -> torch.Tensor:
    if kind == "tubes":  # another number of columns in each clip
        hidden = torch.zeros(n, 4, 4, dtype=torch.bool)
        for i in range(n):
            hidden[i].view(-1)[torch.randperm(16)[: 4 + 3 * i]] = True
        return hidden
    hidden = torch.zeros(n, *GRID, dtype=torch.bool)
    if kind == "future":
        for i in range(n):
            hidden[i, 1 + i % 2 :] = True
    else:  # any cells
        hidden = torch.rand(n, *GRID) < 0.5
    return hidden


def pixels(hidden: torch.Tensor) -> torch.Tensor:
    """The mask over cells or columns as a mask over pixels (B,T,S,S,1)."""
    if hidden.ndim == 3:
        hidden = hidden[:, None].expand(-1, GRID[0], -1, -1)
    return hidden.repeat_interleave(2, 1).repeat_interleave(U, 2).repeat_interleave(U, 3)[..., None]


ENCODERS = {
    "resnet": {},
    "tubelet stem": {"stem": "tubelet"},
    "hard": {"soft": False},
    "budget": {"max_chunks": 7},
    "learned selection": {"max_chunks": 7, "learned_selection": True},
    "fixed": {"fixed": (2, 1, 2)},
    "regions": {"regions": True},
    "no cells' attention": {"cell_depth": 0},
}


@pytest.mark.parametrize("changes", ENCODERS.values(), ids=ENCODERS.keys())
@pytest.mark.parametrize("kind", ["tubes", "future", "any"])
def test_hidden_pixels_change_nothing_and_visible_ones_do(changes, kind):
    model, predictor = encoder(**changes), Predictor(32, 16, 1, 2)
    video, hidden = clips(), hide(kind)
    area = pixels(hidden)

    def everything(v):
        f = model(v, hidden)
        queries = torch.rand(3, 5, 3, generator=torch.Generator().manual_seed(0))
        p = predictor(f.tokens, f.centroids, f.valid, queries)
        return [f.tokens, f.valid, f.centroids, f.sizes, f.assignment, f.num_chunks, p]

    before = everything(video)
    after = everything(torch.where(area, torch.randn_like(video) * 9, video))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    seen = everything(torch.where(area, video, video + torch.randn_like(video)))
    assert not torch.equal(before[0], seen[0]) and not torch.equal(before[-1], seen[-1])


def test_the_tubelet_baseline_sees_no_hidden_pixel_either():
    model, video, hidden = TubeletViT(32, 1, 2, U), clips(), hide("any")
    changed = torch.where(pixels(hidden), 7.0, video)
    assert torch.equal(model(video, hidden).tokens, model(changed, hidden).tokens)


def test_cells_are_the_same_with_and_without_a_hidden_future():
    stem, video = ColumnResNet(16, U, 2, 4), clips()
    hidden = hide("future").flatten(1)
    whole, part = stem(video), stem(video, hidden)
    index, valid = pack_visible(hidden)
    same = whole.x.gather(1, index[..., None].expand(-1, -1, 16))
    assert torch.allclose(part.x[valid], same[valid], atol=1e-6)


def test_frozen_to_the_grid_with_the_tubelet_stem_it_is_the_tubelet_baseline():
    plain = TubeletViT(32, 2, 2, U)
    ours = encoder(stem="tubelet", cell_depth=0, fixed=(1, 1, 1))
    ours.stem.load_state_dict(plain.stem.state_dict())
    ours.vit.load_state_dict(plain.vit.state_dict())
    for hidden in (None, hide("tubes"), hide("any")):
        a, b = plain(clips_of(1), hidden), ours(clips_of(1), hidden)
        assert torch.equal(a.valid, b.valid)
        assert torch.allclose(a.tokens, b.tokens, atol=1e-5)


def clips_of(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return clips()


def test_padding_slots_are_zero_and_counts_follow_the_content():
    model, video = encoder(), clips(2)
    video[0] = video[0, :1]  # nothing moves
    f = model(video)
    assert f.num_chunks[0] == 16 and f.num_chunks[1] > 18
    assert f.tokens[0, 16:].abs().max() == 0 and f.sizes[0, 16:].abs().max() == 0
    assert f.sizes[0, :16].tolist() == pytest.approx([3.0] * 16)
    assert f.tokens.isfinite().all()


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


def test_renumbering_the_slots_leaves_the_grid_unchanged():
    model = encoder()
    e = model.encode(clips())
    order = torch.randperm(e.tokens.shape[1])
    x = model.widen(e.chunks.tokens) + model.position(e.centroids, e.sizes)
    shuffled = model.vit(x[:, order], ~e.valid[:, order])
    grid = e.chunks.assignment[:, :, order] @ shuffled
    assert torch.allclose(grid, e.on_grid(), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_learned_part_of_a_position_is_never_louder_than_its_code(scale):
    position = ChunkPosition(32)
    torch.nn.init.normal_(position.mlp.fc2.weight)
    places, sizes = torch.rand(2, 5, 3) * 6, torch.rand(2, 5) * 6
    facts = torch.cat([places / 8, sizes[..., None].log(), sizes[..., None] / 64], -1)
    plain = position.mlp(facts) * scale
    with torch.no_grad():
        position.mlp.fc2.weight *= scale
        position.mlp.fc2.bias *= scale
    learned = position(places, sizes) - sincos_code(places, 32)
    assert (learned.square().mean(-1) < 0.5 + 1e-4).all()
    assert torch.nn.functional.cosine_similarity(learned, plain, dim=-1).min() > 0.999
    if scale < 1e-2:
        assert torch.allclose(learned, plain, rtol=1e-2, atol=1e-6)


def test_every_parameter_gets_a_gradient():
    model = encoder(max_chunks=10, learned_selection=True).train()
    torch.nn.init.normal_(model.position.mlp.fc2.weight)
    e = model.encode(clips(), hide("future"))
    (e.on_grid().square().sum() + e.tokens.sin().sum()).backward()
    starved = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not starved


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


@pytest.mark.parametrize("apart", [1.0, 30.0, 1000.0])
def test_a_chunk_of_one_cell_is_that_cell_however_its_score_compares(apart):
    pooling = LearnedAttentionPooling(8, 2)
    torch.nn.init.ones_(pooling.query.weight)
    fine = torch.randn(1, 4, 8)
    fine[0, 1] -= apart
    assert torch.allclose(pooling.pool(fine, torch.eye(4)[None], None), fine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [None, hide("any")], ids=["all", "some"])
def test_the_assignment_can_be_laid_out_on_the_grid(hidden):
    f = encoder()(clips(), hidden)
    on_grid = f.assignment.unflatten(1, f.grid)
    assert f.grid == GRID and TubeletViT(32, 1, 2, U)(clips(), hidden).grid == GRID
    assert torch.allclose(on_grid.sum(-1), torch.ones(3, *GRID) if hidden is None else (~hidden).float(), atol=1e-5)


def test_a_mask_must_be_bool_and_as_long_as_the_batch():
    with pytest.raises(ValueError, match="hidden has 2 clips, the video has 3"):
        expand_hidden(hide("future", 2), GRID, 3)
    with pytest.raises(ValueError, match="must be bool"):
        expand_hidden.__wrapped__(hide("future").long(), GRID, 3)
    for model in (encoder(), encoder(stem="tubelet"), TubeletViT(32, 1, 2, U)):
        with pytest.raises(ValueError, match="without a clip"):
            model(clips()[:0], hide("future", 0))


@pytest.mark.parametrize("stem", ["resnet", "tubelet"])
def test_nan_in_hidden_pixels_reaches_no_gradient(stem):
    """Clips that hide different numbers of cells: rows of padding must not read what is hidden."""
    model, video, hidden = encoder(stem=stem).train(), clips(), hide("any")
    hidden[:, 0, 0, 0] = True  # what padding would point to
    model(video.masked_fill(pixels(hidden), float("nan")), hidden).tokens.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_with_the_size_bias_a_chunk_counts_as_all_its_cells():
    """Equal tokens repeated as often as a chunk has cells: the same attention."""
    model = encoder(size_bias=True, depth=1, positions="none", soft=False)
    video, seen = clips(1), []
    model.vit.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    f = model(video)
    counts = f.sizes[0].round().long()
    many = model.vit.blocks[0](seen[0].repeat_interleave(counts, 1))
    first = counts.cumsum(0) - counts
    assert counts.max() > 1 and torch.allclose(model.vit.norm(many)[:, first], f.tokens, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"size_bias": True}], ids=str)
def test_recomputation_and_groups_change_nothing(changes):
    video, model = clips(5), encoder(**changes)
    video[0] = video[0, :1]
    expected = model(video).tokens
    other = encoder(recompute=True, groups=2, **changes)
    other.load_state_dict(model.state_dict())
    assert torch.allclose(other(video).tokens, expected, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layers", [2, 99])
def test_the_mean_of_layers_is_that_of_what_the_blocks_give(layers, groups):
    video, model = clips(5), encoder(groups=groups)
    video[0] = video[0, :1]
    plain, seen = encoder(), []
    plain.load_state_dict(model.state_dict())
    e = model.encode(video, layers=layers)
    plain.vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for block in plain.vit.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append(out))
    plain(video)
    normed = [(x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() for x in seen]
    mean = sum(normed[-layers:]) / len(normed[-layers:])
    assert torch.allclose(e.tokens[e.valid], mean[e.valid], atol=1e-4) and not e.tokens[~e.valid].any()


@pytest.mark.parametrize("budget", [None, 3, 20])
@pytest.mark.parametrize("changes", [{}, {"regions": True}, {"learned_selection": True}, {"fixed": (1, 1, 1)}], ids=str)
def test_clips_do_not_influence_each_other(changes, budget):
    """Isolated columns too, which a budget must merge although they touch nowhere."""
    model, video = encoder(**changes), clips(3)
    torch.nn.init.normal_(model.downsampler.query.weight, -3.0)
    video[0], video[1] = video[0, :1], torch.randn_like(video[1])
    hidden = torch.zeros(3, 4, 4, dtype=torch.bool)
    hidden[0] = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    hidden[2, 0] = True
    f, alone = model(video, hidden, budget), model(video[:1], hidden[:1], budget)
    n = int(alone.num_chunks[0])
    assert f.num_chunks[0] == n
    assert torch.allclose(f.tokens[0, :n], alone.tokens[0, :n], atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_on_meta_and_keep_the_conv_ratio(name):
    with torch.device("meta"):
        model = HNetViT.from_preset(name)
    assert model.dim // 24 <= model.stem.stem.weight.shape[0] <= model.dim // 24 + 2


@pytest.mark.slow
def test_large_costs_less_than_a_quarter_of_vjepa2_large():
    """16 frames of 224², noise: everything moves, so all 196 chunks are in use."""
    transformers = pytest.importorskip("transformers")
    size = dict(crop_size=224, frames_per_clip=16, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
    with torch.device("meta"):
        theirs = transformers.VJEPA2Model(transformers.VJEPA2Config(**size, mlp_ratio=4))
        video = torch.empty(1, 16, 3, 224, 224)
    whole = forward_flops(theirs, video, skip_predictor=True) / 1e9
    ours = HNetViT.from_preset("large")
    with sdpa_kernel(SDPBackend.MATH):
        cost = forward_flops(ours, torch.randn(1, 16, 224, 224, 3)) / 1e9
    assert whole == pytest.approx(1194, rel=0.01) and cost == pytest.approx(186, rel=0.02)
    assert cost <= whole / 4


def test_tiny_takes_16x64x64_and_smaller():
    model = HNetViT.from_preset("tiny")
    for shape in ((1, 16, 64, 64, 3), (2, 4, 16, 40, 3)):
        f = model(torch.randn(shape))
        assert f.tokens.shape[0] == shape[0] and f.tokens.shape[2] == model.dim


def test_bad_sizes_and_names_are_sentences():
    with pytest.raises(ValueError, match="5×32×32 does not divide"):
        encoder()(torch.randn(1, 5, 32, 32, 3))
    with pytest.raises(ValueError, match=r"hidden has shape \(1, 3, 3\)"):
        encoder()(torch.randn(1, 6, 32, 32, 3), torch.zeros(1, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        HNetViT.from_preset("tinny")
    with pytest.raises(ValueError, match="no 2×2 map"):
        HNetViT.from_preset("tiny", conv_blocks=(1,))


def test_coordinates_count_time_row_column():
    assert cell_coords(torch.tensor([[0, 5, 17 + 16]]), GRID).tolist() == [[[0, 0, 0], [0, 1, 1], [2, 0, 1]]]


@pytest.mark.parametrize(
    ("side", "stride", "spatial", "frames"), [(4, 1, 3, 3), (8, 2, 3, 1), (2, 2, 3, 3), (1, 1, 1, 3)]
)
def test_the_matrix_of_a_convolution_is_the_convolution(side, stride, spatial, frames, monkeypatch):
    conv, x = (
        CausalConv3d(3, 5, stride, spatial, frames).double(),
        torch.randn(2, 4, side, side, 3, dtype=torch.float64),
    )
    by_matrix = conv(x)
    monkeypatch.setattr(column_resnet, "MATRIX_VALUES", 0)
    assert torch.allclose(conv(x), by_matrix)


def test_a_column_sees_its_past_only_and_stands_still_when_its_pixels_do():
    stem, video = ColumnResNet(16, U, 2, 4), clips(1)
    later = video.clone()
    later[:, 4:] += 1
    assert torch.equal(stem(later).x[:, :32], stem(video).x[:, :32])
    still = stem(video[:, :1].expand(-1, T, -1, -1, -1)).x.view(1, 3, 16, 16)
    assert torch.allclose(still[:, 0], still[:, 2], atol=1e-6)


def test_places_and_decisions_stay_fp32_under_autocast():
    model, video = encoder(), clips()
    plain = model.encode(video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.encode(video)
    assert rough.centroids.dtype == torch.float32 and rough.routing.prob.dtype == torch.float32
    assert rough.centroids.shape == plain.centroids.shape
    assert torch.allclose(rough.sizes, plain.sizes, atol=0.1)


def packed(coords: list[list[int]], features: torch.Tensor) -> Cells:
    _, h, w = GRID
    index = torch.tensor([[a * h * w + b * w + c for a, b, c in coords]])
    return Cells(features[None], index, torch.ones_like(index, dtype=torch.bool), GRID)


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


def test_bf16_weights_run():
    assert encoder().bfloat16()(clips().bfloat16()).tokens.isfinite().all()


def test_a_clip_without_anything_visible_has_no_token_and_a_batch_of_them_is_refused():
    hidden = torch.ones(2, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="nothing to encode"):
        encoder()(clips(2), hidden)
    hidden[1, 0] = False
    f = encoder()(clips(2), hidden)
    assert f.num_chunks[0] == 0 and f.num_chunks[1] > 0 and f.tokens.isfinite().all()


def test_other_steps_than_two_frames():
    assert TubeletViT(32, 1, 2, U, unit_frames=3)(clips(1)).grid == (2, 4, 4)
