import pytest
import torch
from small_hnet import GRID, U, clips, encoder, hide, pixels
from typecheck import unchecked

from polyspace.models.hnet.column_resnet import ColumnResNet
from polyspace.models.hnet.encoder import expand_hidden, pack_visible
from polyspace.models.vjepa.predictor import Predictor
from polyspace.models.vjepa.vit import TubeletViT

ENCODERS = {
    "resnet": {},
    "tubelet stem": {"stem": "tubelet"},
    "factored": {"factored": True},
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


def test_padding_slots_are_zero_and_counts_follow_the_content():
    model, video = encoder(), clips(2)
    video[0] = video[0, :1]  # nothing moves
    f = model(video)
    assert f.num_chunks[0] == 16 and f.num_chunks[1] > 18
    assert f.tokens[0, 16:].abs().max() == 0 and f.sizes[0, 16:].abs().max() == 0
    assert f.sizes[0, :16].tolist() == pytest.approx([3.0] * 16)
    assert f.tokens.isfinite().all()


def test_a_mask_must_be_bool_and_as_long_as_the_batch():
    with pytest.raises(ValueError, match="hidden has 2 clips, the video has 3"):
        expand_hidden(hide("future", 2), GRID, 3)
    with pytest.raises(ValueError, match="must be bool"):
        unchecked(expand_hidden)(hide("future").long(), GRID, 3)
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


def test_a_clip_without_anything_visible_has_no_token_and_a_batch_of_them_is_refused():
    hidden = torch.ones(2, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="nothing to encode"):
        encoder()(clips(2), hidden)
    hidden[1, 0] = False
    f = encoder()(clips(2), hidden)
    assert f.num_chunks[0] == 0 and f.num_chunks[1] > 0 and f.tokens.isfinite().all()
