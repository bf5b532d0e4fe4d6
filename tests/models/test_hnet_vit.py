import pytest
import torch
from small_hnet import GRID, U, clips, clips_of, encoder, hide
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyspace.models.hnet.pos_enc import ChunkPosition
from polyspace.models.layers import sincos_code
from polyspace.models.vjepa.vit import PRESETS, HNetViT, TubeletViT
from polyspace.utils.flops import forward_flops


def test_frozen_to_the_grid_with_the_tubelet_stem_it_is_the_tubelet_baseline():
    plain = TubeletViT(32, 2, 2, U)
    ours = encoder(stem="tubelet", cell_depth=0, fixed=(1, 1, 1))
    ours.stem.load_state_dict(plain.stem.state_dict())
    ours.vit.load_state_dict(plain.vit.state_dict())
    for hidden in (None, hide("tubes"), hide("any")):
        a, b = plain(clips_of(1), hidden), ours(clips_of(1), hidden)
        assert torch.equal(a.valid, b.valid)
        assert torch.allclose(a.tokens, b.tokens, atol=1e-5)


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


@pytest.mark.parametrize("hidden", [None, hide("any")], ids=["all", "some"])
def test_the_assignment_can_be_laid_out_on_the_grid(hidden):
    f = encoder()(clips(), hidden)
    on_grid = f.assignment.unflatten(1, f.grid)
    assert f.grid == GRID and TubeletViT(32, 1, 2, U)(clips(), hidden).grid == GRID
    assert torch.allclose(on_grid.sum(-1), torch.ones(3, *GRID) if hidden is None else (~hidden).float(), atol=1e-5)


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


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_on_meta_and_keep_the_conv_ratio(name):
    with torch.device("meta"):
        model = HNetViT.from_preset(name)
    assert model.dim // 24 <= model.stem.stem.weight.shape[0] <= model.dim // 24 + 2


@pytest.mark.slow
def test_large_costs_less_than_a_quarter_of_vjepa2_large():
    """16 frames of 224²: at the most chunks that a clip gets, and fewer for a clip that stands still."""
    transformers = pytest.importorskip("transformers")
    size = dict(crop_size=224, frames_per_clip=16, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
    with torch.device("meta"):
        theirs = transformers.VJEPA2Model(transformers.VJEPA2Config(**size, mlp_ratio=4))
        video = torch.empty(1, 16, 3, 224, 224)
    whole = forward_flops(theirs, video, skip_predictor=True) / 1e9
    ours, noise = HNetViT.from_preset("large").eval(), torch.randn(1, 16, 224, 224, 3)
    with sdpa_kernel(SDPBackend.MATH):
        busy, still = ours(noise), ours(noise[:, :1].expand_as(noise))
        cost, some = (forward_flops(ours, noise, num_chunks=k) / 1e9 for k in (320, 196))
    assert busy.num_chunks.tolist() == [320] and still.num_chunks.tolist() == [49]
    assert whole == pytest.approx(1194, rel=0.01)
    assert cost == pytest.approx(268, rel=0.02) and some == pytest.approx(186, rel=0.02)
    assert cost <= whole / 4


@pytest.mark.parametrize("name", ["small", "base"])
def test_real_sizes_choose_their_number_of_chunks_too(name):
    """One block deep: the number is decided before the ViT."""
    model = HNetViT.from_preset(name, depth=1, cell_depth=0).eval()
    video = torch.randn(1, 1, 224, 224, 3).repeat(1, 8, 1, 1, 1)
    numbers = []
    for rows in (0, 56, 112):  # of the frame that change
        video[:, :, :rows] = torch.randn(1, 8, rows, 224, 3)
        numbers.append(int(model(video).num_chunks))
    assert numbers == sorted(numbers) and numbers[0] == 49 <= 0.7 * numbers[-1]


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


def test_places_and_decisions_stay_fp32_under_autocast():
    model, video = encoder(), clips()
    plain = model.encode(video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.encode(video)
    assert rough.centroids.dtype == torch.float32 and rough.routing.prob.dtype == torch.float32
    assert rough.centroids.shape == plain.centroids.shape
    assert torch.allclose(rough.sizes, plain.sizes, atol=0.1)


def test_bf16_weights_run():
    assert encoder().bfloat16()(clips().bfloat16()).tokens.isfinite().all()


def test_other_steps_than_two_frames():
    assert TubeletViT(32, 1, 2, U, unit_frames=3)(clips(1)).grid == (2, 4, 4)
