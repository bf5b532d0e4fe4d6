"""Our own encoders as student or teacher: what they give, what they are called, what stops them."""

import json

import pytest
import torch

from polyspace.models.backbones import describe_all, hnet_vjepa
from polyspace.models.vjepa.saved import load_encoder, make_encoder, read_encoder, save_encoder
from polyspace.utils.errors import UserError

HNET = {
    "arch": "hnet",
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "unit": 4,
    "conv_width": 2,
    "conv_blocks": [1],
    "cell_depth": 0,
}
TUBELET = {"arch": "tubelet", "dim": 16, "depth": 1, "heads": 2, "unit": 4}
INPUT = {"frames": 6, "size": 12, "mean": [0.45] * 3, "std": [0.25] * 3}


def saved(folder, values=HNET, **about):
    torch.manual_seed(0)
    save_encoder(folder, make_encoder(values), values, {"dataset": "generated"}, {**INPUT, **about})
    return folder


@pytest.fixture
def run(tmp_path):
    """A run's folder with a pretrained encoder, and one with the tubelet baseline."""
    saved(tmp_path / "hnet" / "pretrain")
    saved(tmp_path / "tubelet", TUBELET)
    return tmp_path


def card(folder, frames=6, **more):
    return hnet_vjepa.describe(str(folder), None, frames, **more)


@pytest.mark.parametrize("name", ["hnet", "tubelet"])
def test_tokens_lie_on_the_grid_of_cells_and_the_clip_feature_is_the_tokens_mean(run, name):
    about = card(run / name)
    assert (about.dim, about.grid, about.backend) == (16, (3, 3, 3), "polyspace")
    assert about.plan.crop == (12, 12) and about.plan.mean == (0.45,) * 3
    model, video = about.load(), torch.randn(2, 6, 12, 12, 3)
    features = model(video)
    encoded = model.encoder.encode(video)
    assert features.tokens.shape == (2, 27, 16) and features.grid == about.grid
    for b in range(2):
        own = encoded.tokens[b, encoded.valid[b]]
        assert torch.allclose(features.pooled[b], own.mean(0), atol=1e-6)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_budget_bounds_the_chunks_and_stands_in_the_features_identity(run):
    video = torch.randn(2, 6, 12, 12, 3)
    few, free = card(run / "hnet", num_chunks=4), card(run / "hnet")
    assert few.load().encoder.encode(video, num_chunks=4).valid.sum(1).tolist() == [4, 4]
    assert few.identity() != free.identity() and few.pooling == "mean of 4 chunks"
    assert few.flops() < free.flops() and few.params() == free.params()
    assert torch.equal(few.load()(video).tokens, few.load()(video).tokens)


def test_a_clips_feature_does_not_depend_on_its_neighbours(run):
    model, video = card(run / "hnet").load(), torch.randn(3, 6, 12, 12, 3)
    video[1] = video[1, :1]  # stands still: few chunks, the others have more
    together, alone = model(video), [model(v[None]) for v in video]
    for b, one in enumerate(alone):
        assert torch.allclose(together.pooled[b], one.pooled[0], atol=1e-5)
        assert torch.allclose(together.tokens[b], one.tokens[0], atol=1e-5)


def test_the_student_of_the_house_is_found_by_name_and_faults_are_sentences(run, capsys):
    cards = describe_all("hnet_vjepa", ["identity"], 6, [f"hnet_vjepa={run / 'hnet'}"], num_chunks=5)
    assert cards["hnet_vjepa"].pooling == "mean of 5 chunks" and cards["hnet_vjepa"].trained.startswith(
        "self-supervised"
    )
    assert card(run / "hnet", frames=8).grid == (4, 3, 3)
    assert "was pretrained on clips of 6 frames" in capsys.readouterr().err
    with pytest.raises(UserError, match="only hnet_vjepa takes a budget"):
        describe_all("identity", [], 6, num_chunks=5)
    with pytest.raises(UserError, match=r"no encoder\.json there"):
        card(run / "nowhere")
    with pytest.raises(UserError, match="whole steps of 2"):
        card(run / "hnet", frames=7)
    with pytest.raises(UserError, match="has fixed tubelets"):
        card(run / "tubelet", num_chunks=4)
    assert describe_all("hnet_vjepa", ["identity"], 6)["hnet_vjepa"].backend == "identity"  # no weights: a stand-in
    with pytest.raises(UserError, match=r"pretrained by main\.py"):
        describe_all("hnet_vjepa", ["vivit"], 6, strict=True)


def test_a_damaged_or_foreign_file_is_refused(run):
    folder = run / "hnet" / "pretrain"
    about = read_encoder(folder)
    text = json.dumps(about)
    for key, value, fault in (
        ("encoder", {**HNET, "arch": "hnett"}, "arch 'hnett' is unknown.*hnet"),
        ("encoder", {**HNET, "widht": 3}, "widht has no meaning"),
        ("encoder", {**HNET, "dim": 24}, "is \\(16|does not fit"),
        ("sha256", "0" * 64, "is damaged"),
        ("input", {**about["input"], "mean": [0.5, 0.5]}, "are not three numbers each"),
        ("input", {**about["input"], "std": [0.2, 0.0, 0.2]}, "std above 0"),
        ("input", {**about["input"], "mean": [0.5, float("nan"), 0.5]}, "are not three numbers|not of the form"),
        ("input", {**about["input"], "mean": [0.5, 10**400, 0.5]}, "encoder"),
        ("input", {**about["input"], "size": 0}, "frames of 0 pixels"),
    ):
        (folder / "encoder.json").write_text(json.dumps({**json.loads(text), key: value}))
        with pytest.raises(UserError, match=fault):
            load_encoder(folder)
    (folder / "encoder.json").write_text("{}")
    with pytest.raises(UserError, match="is not of the form expected"):
        load_encoder(folder)
