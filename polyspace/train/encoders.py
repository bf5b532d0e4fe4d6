"""Encoders by configuration."""

import inspect
from typing import Any, Literal

from pydantic import Field

from polyspace.config import Config
from polyspace.models.vjepa.saved import ARCHITECTURES, make_encoder
from polyspace.models.vjepa.vit import PRESETS, HNetViT, TubeletViT
from polyspace.utils.errors import UserError, did_you_mean


class EncoderConfig(Config):
    arch: Literal["hnet", "tubelet"] = Field(
        "hnet", description="chunks of the encoder's own choice, or plain tubelets"
    )
    preset: str = Field("tiny", description="tiny, small, base or large; the other keys override it")
    dim: int | None = Field(None, ge=8, description="width of the ViT")
    depth: int | None = Field(None, ge=1, description="blocks of the ViT")
    heads: int | None = Field(None, ge=1, description="heads of the ViT")
    unit: int | None = Field(None, ge=1, description="pixels a side of a cell")
    unit_frames: int | None = Field(None, ge=1, description="frames of a cell")
    cell_dim: int | None = Field(None, ge=8, description="width of cells before they are pooled; by default the ViT's")
    cell_depth: int | None = Field(None, ge=0, description="blocks of native sparse attention among cells")
    conv_width: int | None = Field(None, ge=1, description="channels of the ResNet's first stage")
    conv_blocks: tuple[int, ...] | None = Field(None, description="residual units of the ResNet's stages")
    factored: bool | None = Field(None, description="convolutions in space, then in time: (2+1)D")
    stem: Literal["resnet", "tubelet"] | None = Field(None, description="3-D ResNet, or one linear map")
    soft: bool | None = Field(None, description="assignments by the gate's probabilities, else hard")
    fixed: tuple[int, int, int] | None = Field(None, description="steps, rows, columns of equal blocks; no gate")
    regions: bool | None = Field(None, description="alike neighbours share a chunk, when the encoder is used")
    overlap: float | None = Field(None, ge=0, le=1, description="share of steps that joining runs have in common")
    learned_pooling: bool | None = Field(None, description="a query pools a chunk's cells, else their mean")
    learned_selection: bool | None = Field(None, description="a learned score decides which chunks a budget keeps")
    positions: Literal["adaptive", "centroid", "none"] | None = Field(None, description="what tells a chunk's place")
    size_bias: bool | None = Field(None, description="a token counts in attention as often as it has cells")
    max_chunks: int | None = Field(None, ge=1, description="most tokens a clip where the content decides")
    runs_per_chunk: float | None = Field(None, ge=1, description="runs that share a token where the content decides")
    recompute: bool | None = Field(None, description="activations again in the backward pass: less memory")
    groups: int | None = Field(None, ge=1, description="parts of a batch, by length, each padded to its own longest")


def build_encoder(config: EncoderConfig) -> HNetViT | TubeletViT:
    """The preset with the given overrides; `arch: tubelet` keeps what both have."""
    if config.preset not in PRESETS:
        raise UserError(f"encoder.preset {config.preset!r} is unknown{did_you_mean(config.preset, PRESETS)}")
    return make_encoder(recipe(config))


def encoder_values(config: EncoderConfig) -> dict[str, Any]:
    """Every argument of the encoder's constructor: its defaults, the preset, the given overrides."""
    may_be_none = ("max_chunks", "fixed")
    given = config.model_dump(exclude={"arch", "preset"}, exclude_unset=True)
    given = {k: v for k, v in given.items() if v is not None or k in may_be_none}
    known = inspect.signature(ARCHITECTURES[config.arch]).parameters
    for key in given:
        if key not in known:
            raise UserError(f"encoder.{key} has no meaning for arch {config.arch}")
    defaults = {key: p.default for key, p in known.items() if p.default is not inspect.Parameter.empty}
    preset = {key: value for key, value in PRESETS[config.preset].items() if key in known}
    return defaults | preset | given


def recipe(config: EncoderConfig) -> dict[str, Any]:
    """All that `make_encoder` needs, and the preset's name."""
    return {"arch": config.arch, "preset": config.preset} | encoder_values(config)
