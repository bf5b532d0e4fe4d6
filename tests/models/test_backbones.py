"""The four architectures through transformers: plans, layouts, norms, costs, and the stand-in."""

import pytest
import torch
import transformers
from conftest import MODELS, PATCH, SIDE, WIDTH, save_small, small_config

from polyspace.models.backbones import describe_all, hf, identity
from polyspace.models.backbones.checkpoints import find_checkpoint
from polyspace.models.backbones.plans import default_plan, plan_from_config
from polyspace.utils.errors import UserError

FRAMES = {"vjepa2": 4, "videomae": 4, "timesformer": 3, "vivit": 6}


def card(name, folder, frames=4):
    return hf.describe(name, str(folder), None, frames)


def clips(name, count=2):
    return torch.randn(count, FRAMES[name], SIDE, SIDE, 3)


@pytest.mark.parametrize("name", MODELS)
def test_each_gives_tokens_their_grid_and_a_clip_feature(checkpoints, name):
    about = card(name, checkpoints[name])
    assert about.plan.frames == FRAMES[name] and about.plan.crop == (SIDE, SIDE) and about.dim == WIDTH
    features = about.load()(clips(name))
    t, h, w = features.grid
    assert features.grid == about.grid and (h, w) == (SIDE // PATCH, SIDE // PATCH)
    assert features.tokens.shape == (2, t * h * w, WIDTH) and features.pooled.shape == (2, WIDTH)
    assert not any(p.requires_grad for p in about.load().parameters())


@pytest.mark.parametrize("name", MODELS)
def test_tokens_follow_time_row_column_order(checkpoints, name):
    """Changing one cell of the clip changes the token of that cell more than any other token of the embedding."""
    backbone = card(name, checkpoints[name]).load()
    for module in backbone.model.modules():  # without attention and MLP each token sees itself only
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.zeros_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    video = clips(name, 1)
    t, h, w = backbone.grid
    span = FRAMES[name] // t
    for cell in [(0, 0, 1), (t - 1, 1, 0), (t // 2, 1, 1)]:
        other = video.clone()
        a, r, c = cell
        other[:, a * span : (a + 1) * span, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH] += 1
        moved = (backbone(other).tokens - backbone(video).tokens).norm(dim=-1)[0]
        assert moved.argmax().item() == (a * h + r) * w + c
        assert (moved > 1e-5).sum() == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_frame_count_or_size_is_an_error_and_never_a_wrong_layout(checkpoints, name):
    backbone = card(name, checkpoints[name]).load()
    for shape in ((1, FRAMES[name] + 2, SIDE, SIDE, 3), (1, FRAMES[name], 2 * SIDE, SIDE, 3)):
        with pytest.raises(ValueError, match=f"{name} takes clips of"):
            backbone(torch.randn(shape))


def test_an_odd_frame_is_an_error_for_vjepa2(checkpoints):
    with pytest.raises(UserError, match="--frames 5"):
        card("vjepa2", checkpoints["vjepa2"], 5)
    assert card("vjepa2", checkpoints["vjepa2"], 8).plan.frames == 8  # any even count else


@pytest.mark.parametrize("name", ["videomae", "timesformer", "vivit"])
def test_each_teacher_keeps_its_own_frame_count(checkpoints, name):
    assert card(name, checkpoints[name], 16).plan.frames == FRAMES[name]


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_taken_after_the_final_norm(checkpoints, name):
    tokens = card(name, checkpoints[name]).load()(clips(name)).tokens
    assert tokens.mean(-1).abs().max() < 1e-4 and (tokens.var(-1, correction=0) - 1).abs().max() < 1e-2


def test_a_fine_tuned_videomae_uses_the_norm_that_its_head_keeps(tmp_path):
    config = small_config("videomae")
    config.use_mean_pooling, config.num_labels = True, 3
    model = transformers.VideoMAEForVideoClassification(config)
    torch.nn.init.normal_(model.fc_norm.weight)
    torch.nn.init.normal_(model.fc_norm.bias)
    about = card("videomae", save_small("videomae", tmp_path, model=model))
    video = clips("videomae")
    expected = model.eval()(video.permute(0, 1, 4, 2, 3)).logits
    assert "fc_norm" in about.pooling
    head = about.classifier()
    torch.testing.assert_close(head.linear(about.load()(video).pooled), expected)
    assert head.names == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize("name", ["timesformer", "vivit"])
def test_the_checkpoints_classifier_reads_the_clip_feature(tmp_path, name):
    config = small_config(name)
    config.id2label = {0: "run", 1: "jump", 2: "swim"}
    kind = {"timesformer": "TimesformerForVideoClassification", "vivit": "VivitForVideoClassification"}[name]
    model = getattr(transformers, kind)(config).eval()
    about, video = card(name, save_small(name, tmp_path, model=model)), clips(name)
    expected = model(video.permute(0, 1, 4, 2, 3)).logits
    torch.testing.assert_close(about.classifier().linear(about.load()(video).pooled), expected, rtol=1e-4, atol=1e-4)
    assert about.classifier().names == ["run", "jump", "swim"]


def test_a_backbone_without_a_head_has_no_classifier(checkpoints):
    assert all(card(name, folder).classifier() is None for name, folder in checkpoints.items())


def test_the_predictor_of_vjepa2_is_not_run(checkpoints):
    backbone = card("vjepa2", checkpoints["vjepa2"]).load()
    assert isinstance(backbone.model.predictor, torch.nn.Identity)
    reference = transformers.VJEPA2Model.from_pretrained(checkpoints["vjepa2"]).eval()
    video = clips("vjepa2")
    with torch.no_grad():
        hidden = reference(pixel_values_videos=video.permute(0, 1, 4, 2, 3), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(backbone(video).tokens, hidden)


def test_the_plan_is_the_checkpoints_own(tmp_path):
    own = {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 3,
    }
    plan = card("timesformer", save_small("timesformer", tmp_path, own)).plan
    assert (plan.resize, plan.crop, plan.interpolation) == (40, (SIDE, SIDE), "bicubic")
    assert plan.mean == (0.1, 0.2, 0.3) and plan.std == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("normalise", [True, False])
def test_vivit_is_normalised_once(tmp_path, capsys, normalise):
    own = {"rescale_factor": 1 / 127.5, "offset": True, "do_normalize": normalise}
    own |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    plan = card("vivit", save_small("vivit", tmp_path, own)).plan
    assert plan.range() == pytest.approx((-1, 1))
    assert ("normalise twice" in capsys.readouterr().err) == normalise


def test_a_crop_that_does_not_fit_the_position_table_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"crop of 48x48 does not fit the model's 32x32"):
        card("vjepa2", save_small("vjepa2", tmp_path, {"crop_size": 48}))


def test_default_plans_are_the_documented_ones():
    sizes = {"vjepa2": (292, 256), "videomae": (224, 224), "timesformer": (224, 224), "vivit": (256, 224)}
    for name, (short, crop) in sizes.items():
        plan = hf.default_card(name, 16).plan
        assert (plan.resize, plan.crop) == (short, (crop, crop))
    base = default_plan("videomae", transformers.VideoMAEConfig(), 16)
    assert plan_from_config(base, {"do_normalize": False, "do_rescale": False}, "x").range() == (0, 255)


@pytest.mark.parametrize(
    ("name", "gigaflops", "millions", "dim"),
    [("vjepa2", 1656, 304, 1024), ("videomae", 361, 86, 768), ("timesformer", 392, 121, 768), ("vivit", 903, 89, 768)],
)
def test_published_sizes_cost_what_arithmetic_says(name, gigaflops, millions, dim):
    about = hf.default_card(name, 16)
    assert about.flops() / 1e9 == pytest.approx(gigaflops, rel=0.01)
    assert about.params() / 1e6 == pytest.approx(millions, rel=0.01) and about.dim == dim


def test_a_folder_of_another_architecture_or_without_weights_is_an_error(checkpoints, tmp_path):
    with pytest.raises(UserError, match="model_type is 'vivit', not videomae"):
        card("videomae", checkpoints["vivit"])
    with pytest.raises(UserError, match="no such folder"):
        find_checkpoint("./absent")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        find_checkpoint(str(tmp_path))


def test_missing_weights_are_an_error_and_never_random_layers(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_small("videomae", tmp_path)
    state = load_file(folder / "model.safetensors")
    state.pop(next(k for k in state if "layer.1" in k))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights of its own architecture"):
        card("videomae", folder).load()


def test_the_digest_follows_the_weights(checkpoints, tmp_path):
    before = card("vivit", checkpoints["vivit"]).digest
    assert before == card("vivit", checkpoints["vivit"]).digest
    model = transformers.VivitModel(small_config("vivit"))
    assert card("vivit", save_small("vivit", tmp_path, model=model)).digest != before


def test_stand_ins_are_announced_differ_by_name_and_strict_forbids_them(capsys):
    cards = describe_all("vjepa2", ["vivit"], 16)
    said = capsys.readouterr().err
    assert "STAND-IN" in said and "vjepa2" in said and all(c.backend == "identity" for c in cards.values())
    video = torch.rand(1, 16, 64, 64, 3)
    a, b = (identity.describe(n, 16).load()(video) for n in ("vjepa2", "videomae"))
    again = identity.describe("vjepa2", 16).load()(video)
    assert torch.equal(a.pooled, again.pooled) and not torch.allclose(a.pooled[:, :768], b.pooled)
    assert a.grid == (8, 4, 4) and a.tokens.shape[1] == 128
    with pytest.raises(UserError, match="--strict: vjepa2 has no weights"):
        describe_all("vjepa2", ["vivit"], 16, strict=True)


def test_names_are_checked():
    with pytest.raises(UserError, match="--student vjepa is unknown; did you mean 'vjepa2'"):
        describe_all("vjepa", [], 16)
    with pytest.raises(UserError, match="--teachers videome"):
        describe_all("vjepa2", ["videome"], 16)
    with pytest.raises(UserError, match="each backbone once"):
        describe_all("vjepa2", ["vivit", "vivit"], 16)
    with pytest.raises(UserError, match="neither student nor teacher"):
        describe_all("vjepa2", ["vivit"], 16, ["videomae=x"])
