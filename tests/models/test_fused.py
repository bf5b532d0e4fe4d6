"""Fused parts give what transformers' own give, under the same names."""

import copy

import pytest
import torch
import transformers
from conftest import MODELS, small_config
from torch import nn

from polyspace.models.backbones.fused import FusedAttention, PatchProjection, Rotation, fuse

REPLACED = {"vjepa2": 1, "videomae": 1, "timesformer": 1 + 2 * 2, "vivit": 1 + 2}  # two layers each


def pair(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    config = small_config(name)
    model = getattr(transformers, MODELS[name])(config).eval()
    frames = getattr(config, "num_frames", None) or config.frames_per_clip
    return model, fuse(copy.deepcopy(model)), torch.randn(2, frames, 3, 32, 32)


def run(name: str, model: nn.Module, video: torch.Tensor) -> torch.Tensor:
    extra = {"skip_predictor": True} if name == "vjepa2" else {}
    return model(video, **extra).last_hidden_state


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_fused_model_gives_the_same_tokens(name):
    model, fused, video = pair(name)
    torch.testing.assert_close(run(name, fused, video), run(name, model, video), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_its_weights_keep_their_names_and_every_slow_part_is_found(name):
    model, fused, _ = pair(name)
    assert fused.state_dict().keys() == model.state_dict().keys()
    kinds = PatchProjection | FusedAttention | nn.GELU
    replaced = [
        n for n, m in fused.named_modules() if isinstance(m, kinds) and type(model.get_submodule(n)) is not type(m)
    ]
    assert len(replaced) == REPLACED[name]
    turning = [m for m in fused.modules() if isinstance(vars(m).get("apply_rotary_embeddings"), Rotation)]
    assert bool(turning) == (name == "vjepa2")


@pytest.mark.parametrize("sizes", [((2, 4, 5), (5, 9, 11)), ((3, 2), (7, 6))])
@torch.no_grad()
def test_patches_are_projected_as_the_convolution_does_and_what_fills_none_is_dropped(sizes):
    kernel, pixels = sizes
    conv = (nn.Conv3d if len(kernel) == 3 else nn.Conv2d)(3, 7, kernel, stride=kernel).double()
    x = torch.randn(2, 3, *pixels, dtype=torch.float64)
    torch.testing.assert_close(PatchProjection(conv)(x), conv(x), rtol=1e-12, atol=1e-12)


def test_a_convolution_with_padding_or_overlap_stays():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 2, stride=2, padding=1))
    assert all(isinstance(m, nn.Conv2d) for m in fuse(plain))


@torch.no_grad()
def test_rotations_under_autocast_are_nearer_the_exact_ones_than_the_models_own():
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention

    config = transformers.VJEPA2Config(crop_size=256, frames_per_clip=16, hidden_size=128, num_attention_heads=2)
    attention = VJEPA2RopeAttention(config, 128, 2)
    x = torch.randn(1, 2, 8 * 256, 64).bfloat16()
    places = attention.get_position_ids(x[0])
    exact = attention.apply_rotary_embeddings(x.double(), places)
    ours = Rotation(type(attention), attention)(x, places)
    theirs = attention.apply_rotary_embeddings(x, places)
    assert (ours - exact).abs().max() < 0.7 * (theirs - exact).abs().max()
    torch.testing.assert_close(Rotation(type(attention), attention)(x.double(), places), exact)


def test_attention_without_probabilities_says_so():
    _, fused, _ = pair("timesformer")
    attention = next(m for m in fused.modules() if isinstance(m, FusedAttention))
    with pytest.raises(ValueError, match="keeps no probabilities"):
        attention(torch.randn(1, 3, 24), output_attentions=True)
