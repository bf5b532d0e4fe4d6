"""The arms of bench/learning.py: what is trained, on which clips, and how long."""

from dataclasses import dataclass, field
from typing import Any

from polyspace.config import validate
from polyspace.train.encoders import EncoderConfig, encoder_values
from polyspace.train.vjepa.pretrain_config import PretrainConfig

CLASSES, LABELS = 6, 512
CLIPS = {"frames": 12, "size": 48, "classes": CLASSES, "objects": (1, 2)}
# part -> (clips, seed): no clip is in two parts
PARTS = {"train": (LABELS, 1), "validation": (1000, 4), "test": (2000, 5), "pretrain": (20000, 3)}
TUBELET = {"arch": "tubelet", "preset": "tiny"}
HNET = {"arch": "hnet", "preset": "tiny"}
VARIANCE: dict[str, Any] = {"variance_weight": 0.5, "covariance_weight": 0.02}
NO_VARIANCE: dict[str, Any] = {"variance_weight": 0.0, "covariance_weight": 0.0}
STEP: dict[str, Any] = {"batch": 4, "lr": 1e-3, "target_layers": 5} | VARIANCE  # targets from 4 layers and the input
# best on the validation part after 480 s, one seed a try; which rate tubelets want in 1200 s is not settled
TUBELET_STEP: dict[str, Any] = STEP | {"lr": 2e-3}
HNET_STEP: dict[str, Any] = STEP | {"batch": 8}
# steps, rows, columns of fixed blocks: 108 tokens, somewhat more than gates have chosen; motion is along columns
FIXED, FIXED_ROWS = (2, 1, 1), (1, 2, 1)


@dataclass(frozen=True)
class Arm:
    """encoder and pretrain are changes of the defaults; `pretrain` None leaves the encoder at random init."""

    encoder: dict[str, Any]
    pretrain: dict[str, Any] | None = field(default_factory=dict)
    supervised: bool = False
    seeds: int = 3

    def identity(self) -> dict[str, Any]:
        """All that the arm depends on, defaults included."""
        trained = None if self.pretrain is None else self.pretrain_config(1).model_dump(mode="json")
        return {"encoder": encoder_values(self.encoder_config()), "pretrain": trained, "supervised": self.supervised}

    def encoder_config(self) -> EncoderConfig:
        return validate(EncoderConfig, self.encoder)

    def pretrain_config(self, steps: int) -> PretrainConfig:
        fixed = {"steps": steps, "save_every": 250, "log_every": 25}
        return validate(PretrainConfig, (self.pretrain or {}) | fixed)


ARMS = {
    "random_hnet": Arm(HNET, None),
    "random_tubelet": Arm(TUBELET, None),
    "tubelet_vjepa": Arm(TUBELET, TUBELET_STEP),
    "hnet_vjepa": Arm(HNET, HNET_STEP),
    "hnet_fixed": Arm(HNET | {"fixed": FIXED}, HNET_STEP),
    "hnet_fixed_rows": Arm(HNET | {"fixed": FIXED_ROWS}, HNET_STEP, seeds=1),
    "supervised": Arm(HNET, {}, supervised=True, seeds=1),
}

# for as many updates (--steps) of as many clips
EQUAL_STEPS = {"tubelet_vjepa": Arm(TUBELET, TUBELET_STEP), "hnet_vjepa": Arm(HNET, STEP)}

# one change each from hnet_vjepa as it is at equal steps: updates, unlike seconds, are the same on any machine
ABLATIONS = {
    "as_is": Arm(HNET, STEP),
    "hard_assignment": Arm(HNET | {"soft": False}, STEP, seeds=1),
    "mean_pooling": Arm(HNET | {"learned_pooling": False}, STEP, seeds=1),
    "no_positions": Arm(HNET | {"positions": "none"}, STEP, seeds=1),
    "no_variance": Arm(HNET, STEP | NO_VARIANCE, seeds=1),
    "no_covariance": Arm(HNET, STEP | {"covariance_weight": 0.0}, seeds=1),
    "no_ratio": Arm(HNET, STEP | {"ratio_weight": 0.0}, seeds=1),
    "context_loss": Arm(HNET, STEP | {"context_weight": 0.5}, seeds=1),
    "vicregl": Arm(HNET, STEP | {"vicregl_weight": 0.01}, seeds=1),
    "half_tubes": Arm(HNET, STEP | {"future_share": 0.5}, seeds=1),
    "chunk_targets": Arm(HNET, STEP | {"target": "chunk"}),
    "chunk_targets_tubes": Arm(HNET, STEP | {"target": "chunk", "future_share": 0.5}, seeds=1),
    "budgets": Arm(HNET, STEP | {"budgets": (0.1, 0.5)}, seeds=1),
    "no_chunks": Arm(HNET | {"fixed": (1, 1, 1)}, STEP, seeds=1),
}

# what the cells are made by, all else as in hnet_vjepa: accuracy against clips a second
FRONT = {
    "as_is": Arm(HNET, STEP),
    "conv_width_2": Arm(HNET | {"conv_width": 2}, STEP),
    "conv_width_8": Arm(HNET | {"conv_width": 8}, STEP),
    "conv_width_16": Arm(HNET | {"conv_width": 16}, STEP),
    "factored": Arm(HNET | {"factored": True}, STEP),
    "factored_8": Arm(HNET | {"factored": True, "conv_width": 8}, STEP),
    "two_units_a_stage": Arm(HNET | {"conv_blocks": (2, 2)}, STEP),
    "tubelet_stem": Arm(HNET | {"stem": "tubelet"}, STEP),
}

# the same settings for both, chosen on the validation part
_TRIES: dict[str, dict[str, Any]] = {
    "as_is": {},
    "lr_high": {"lr": 2e-3},
    "lr_low": {"lr": 5e-4},
    "batch_8": {"batch": 8},
    "no_variance": NO_VARIANCE,
}
SWEEP = {
    f"{name}/{change}": Arm(encoder, STEP | extra)
    for name, encoder in (("tubelet_vjepa", TUBELET), ("hnet_vjepa", HNET))
    for change, extra in _TRIES.items()
}
