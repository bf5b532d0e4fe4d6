"""What every phase's configuration says of its training, and that as the loop wants it."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from polyspace.config import Config
from polyspace.train.loop import FitSettings
from polyspace.utils.trackers import choose

# a field of a command's configuration; nothing that a result depends on
Track = Annotated[
    tuple[str, ...],
    AfterValidator(choose),
    Field(
        validate_default=True,
        description="where metrics go beside metrics.jsonl: tensorboard, wandb, none; auto: tensorboard if installed",
    ),
]


class TrainingConfig(Config):
    """How a phase trains; each has defaults of its own."""

    steps: int = Field(1000, ge=1, description="updates")
    batch: int = Field(32, ge=1, description="clips an update")
    accumulate: int = Field(1, ge=1, description="micro-batches an update")
    lr: float = Field(1e-3, gt=0, description="highest learning rate of AdamW")
    weight_decay: float = Field(0.04, ge=0, description="of matrices")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps over which the rate rises")
    clip_norm: float = Field(1.0, gt=0, description="highest norm of the gradient")
    save_every: int = Field(200, ge=1)
    log_every: int = Field(10, ge=1)
    max_bad_steps: int = Field(5, ge=1, description="non-finite steps in a row that stop the run")

    @model_validator(mode="after")
    def _divides(self) -> "TrainingConfig":
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} does not divide into {self.accumulate} micro-batches")
        return self


def fit_settings(config: TrainingConfig, seed: int, eval_every: int = 0) -> FitSettings:
    """The loop's settings; the learning rate's rise is called `warmup` in configurations."""
    c = config
    return FitSettings(
        steps=c.steps,
        batch=c.batch,
        lr=c.lr,
        warmup_ratio=c.warmup,
        accumulate=c.accumulate,
        save_every=c.save_every,
        log_every=c.log_every,
        eval_every=eval_every,
        seed=seed,
        max_bad_steps=c.max_bad_steps,
    )
