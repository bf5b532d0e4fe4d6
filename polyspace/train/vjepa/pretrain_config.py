"""Phase 1, pretrain: what can be set, with defaults."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from polyspace.config import Config
from polyspace.train.settings import TrainingConfig

Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, le=1)]


class DataConfig(Config):
    dataset: str = Field("generated", description="generated, or a data set's name (hmdb51, ssv2, videofolder, …)")
    root: Path | None = Field(None, description="the data set's folder")
    split: str = Field("train", description="which part to train on")
    list: Path | None = Field(None, description="videofolder: a CSV of path, label, text, split")
    frames: int = Field(12, ge=2, description="frames a clip")
    size: int = Field(48, ge=8, description="pixels a side, after resize of the short side and centre crop")
    sampling: str = Field("segments", description="which frames of a file: segments, stride:N, fps:N, index:…")
    augment: bool = Field(True, description="files: other frames and another crop each time, else the middle ones")
    clips: int = Field(8000, ge=1, description="generated clips")
    workers: int = Field(2, ge=0, description="processes that decode files ahead")
    max_failed: float = Field(0.05, ge=0, le=1, description="share of unreadable clips at which the run stops")


class PretrainConfig(TrainingConfig):
    steps: int = Field(3500, ge=1, description="updates")
    batch: int = Field(4, ge=1, description="clips an update")
    ema: tuple[Share, Share] = Field((0.99, 0.99), description="decay of the target at the first and the last step")
    ema_broadcast: bool = Field(False, description="ranks take the first one's target after each update")
    predictor_width: int = Field(64, ge=8, description="dims of the predictor's tokens")
    predictor_depth: int = Field(2, ge=1, description="blocks of the predictor")
    predictor_heads: int = Field(4, ge=1, description="heads of the predictor")
    target: Literal["grid", "chunk"] = Field("grid", description="latents on the grid, or whole hidden chunks")
    target_layers: int = Field(
        0, ge=0, description="the target is the mean of so many last layers; 0: all and the input"
    )
    chunk_weight_until: float = Field(
        0.6,
        ge=0,
        description="share of the run in which cells go from weighing 1/size of their chunk to alike",
    )
    energy: Literal["l1", "smooth_l1", "l2", "cosine"] = Field("l1", description="how far predictions are from targets")
    still: Share = Field(0.0, description="share of a place's mean over time that is taken off the targets")
    future_share: Share = Field(1.0, description="share of steps that hide the future, else space tubes")
    horizon: int = Field(2, ge=0, description="hidden steps that are asked for; 0 all")
    tube_ratios: tuple[Part, ...] = Field(
        (0.75, 0.9), min_length=1, description="shares of the columns that tubes hide"
    )
    block_scale: Share = Field(0.15, description="area of a tube's blocks, share of the frame; 0 single columns")
    context_weight: float = Field(0.0, ge=0, description="of the energy of visible cells")
    variance_weight: float = Field(0.5, ge=0, description="of VICReg's variance term, per position")
    covariance_weight: float = Field(0.02, ge=0, description="of VICReg's covariance term, per position")
    vicregl_weight: float = Field(0.0, ge=0, description="of VICRegL between two masked views (a second forward)")
    ratio_weight: float = Field(0.03, ge=0, description="of the loss that steers the share of boundaries")
    entropy_weight: float = Field(0.0, ge=0, description="of the entropy of assignments")
    boundary_weight: float = Field(0.0, ge=0, description="of the doubt of boundary decisions")
    cells_per_chunk: float = Field(
        5.0, gt=1, description="a boundary in so many cells (first steps not counted) is what the ratio loss asks"
    )
    budgets: tuple[Part, Part] | None = Field(None, description="range of budgets trained for, share of the cells")
    budget_share: Share = Field(0.5, description="share of steps with a budget")
    region_share: Share = Field(0.0, description="share of steps on regions (hurt where it was measured)")

    @model_validator(mode="after")
    def _fits_together(self) -> "PretrainConfig":
        if self.batch // self.accumulate < 2 and (self.variance_weight or self.covariance_weight):
            raise ValueError("variance and covariance are over the clips of a micro-batch: at least 2, or weights of 0")
        if self.budgets is not None and self.budgets[0] > self.budgets[1]:
            raise ValueError(f"budgets {self.budgets}: the lower share comes first")
        return self
