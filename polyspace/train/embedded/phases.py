"""What the small backbones learn by, one phase an objective: classes of a clip, hidden pixels.

Latent prediction stands in latents.py. Every phase holds the real transformers model and says what is saved.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyspace.data.batch import VideoBatch
from polyspace.data.sampling import segment_indices
from polyspace.models.backbones.hf import FAMILIES, HFBackbone
from polyspace.models.backbones.plans import default_plan
from polyspace.train.embedded.clips import FRAMES, LOOKS, SIDE, TURNS, turns_bin
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.checkpoint_io import write_json

PATCH, WIDTH, DEPTH = 8, 64, 4
CHUNK = 128  # clips a forward when scoring
SHAPES: dict[str, dict[str, Any]] = {
    "vjepa2": {"mlp_ratio": 3, "crop_size": SIDE, "frames_per_clip": 16}
    | {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2},
    "videomae": {"intermediate_size": 3 * WIDTH, "image_size": SIDE, "num_frames": 16, "use_mean_pooling": False},
    "timesformer": {"intermediate_size": 3 * WIDTH, "image_size": SIDE, "num_frames": 8},
    "vivit": {"intermediate_size": 3 * WIDTH, "image_size": SIDE, "num_frames": 32, "tubelet_size": [4, PATCH, PATCH]},
}


def small_model(name: str, kind: str = "Model", **extra: Any) -> Any:
    """transformers' own class `kind` of an architecture (e.g. ForVideoClassification) at toy size, random weights."""
    import transformers

    family = FAMILIES[name]
    stem = family.model_class.removesuffix("Model")
    shape: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "patch_size": PATCH,
    }
    shape["initializer_range"] = 0.1  # the default, .02, suits a width of 768: here nothing would move for long
    config = getattr(transformers, stem + "Config")(**shape, **SHAPES[name], **extra)
    return getattr(transformers, stem + kind)._from_config(config, attn_implementation=family.attention)


class EmbeddedPhase(Phase):
    """One model and its objective. `held_out` is the batch that `evaluate` scores, `saved` what the folder holds."""

    held_out: VideoBatch

    def __init__(self, name: str, model: Any) -> None:
        super().__init__()
        self.name, self.model = name, model
        self.plan = default_plan(name, model.config, 16)

    @property
    def backbone(self) -> HFBackbone:
        """The encoder behind our input and output forms; made when asked for, so that weights are registered once."""
        return HFBackbone(self.name, self.model.base_model, None, self.plan.frames, self.plan.crop)

    @property
    def saved(self) -> Any:
        return self.model.base_model

    def save(self, folder: Path) -> None:
        """A folder in transformers' layout, with the preprocessor config of the plan."""
        self.saved.save_pretrained(folder)
        height, width = self.plan.crop
        taken: dict[str, Any] = {"size": {"shortest_edge": height}, "crop_size": {"height": height, "width": width}}
        taken |= {"rescale_factor": self.plan.scale, "image_mean": self.plan.mean, "image_std": self.plan.std}
        taken |= {"offset": True, "do_normalize": False} if self.plan.offset else {"do_normalize": True}
        write_json(folder / "preprocessor_config.json", taken)

    def frames(self, generator: torch.Generator) -> list[int]:
        """The frames of an update's clips: a random one of each segment."""
        return segment_indices(FRAMES, self.plan.frames, generator)


class ClassPhase(EmbeddedPhase):
    """Cross entropy of a clip's class, asked of the clip feature and, by the same classifier, of each time step's mean
    token. With `dense` these also tell the object's place and velocity: motion is learned late without (docs/log.md).
    """

    def __init__(self, name: str, fact: str, dense: bool = False) -> None:
        names = {"look": LOOKS, "turns": TURNS}[fact]
        labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
        super().__init__(name, small_model(name, "ForVideoClassification", **labels))
        self.fact = fact
        self.place = nn.Linear(WIDTH, 4) if dense else None

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.video is not None and batch.features is not None
        features = self.backbone(batch.video)
        t, h, w = features.grid
        steps = features.tokens.unflatten(1, (t, h * w)).mean(2)  # (B,t·hw,D) -> (B,t,D)
        logits = self.model.classifier(torch.cat([features.pooled[:, None], steps], 1))
        label = self.label(batch)[:, None].expand(-1, 1 + t)
        terms = {"class": F.cross_entropy(logits.flatten(0, 1), label.flatten())}
        if self.place is not None:
            place = F.adaptive_avg_pool1d(batch.features["place"].mT, t).mT
            terms["place"] = 10 * F.mse_loss(self.place(steps), place)
        return StepOutput(torch.stack(list(terms.values())).sum(), {k: v.detach() for k, v in terms.items()})

    def label(self, batch: VideoBatch) -> Tensor:
        assert batch.features is not None
        return turns_bin(batch.features["turns"]) if self.fact == "turns" else batch.features["look"]

    def evaluate(self, step: int) -> dict[str, Any]:
        assert self.held_out.video is not None
        logits = [self.model.classifier(self.backbone(part).pooled) for part in self.held_out.video.split(CHUNK)]
        said, label = torch.cat(logits).argmax(1), self.label(self.held_out)
        scores = {f"{self.fact}_accuracy": (said == label).double().mean().item()}
        if self.fact == "turns":
            half = len(TURNS) // 2
            scores["sense_accuracy"] = ((said >= half) == (label >= half)).double().mean().item()
        return scores

    @property
    def saved(self) -> Any:
        return self.model


class PixelPhase(EmbeddedPhase):
    """VideoMAE: the pixels of hidden cells from those of the others, mean squared error (arXiv 2203.12602, section 3).

    `ratio` of the cells is hidden, each for itself: of tubes, as in the paper, these few cells on still ground learn
    nothing (docs/log.md), since what lies in a column is shown nowhere else. Pixels are the normalised ones; the
    class's own loss takes them for ImageNet-normalised, an affine map of ours.
    """

    def __init__(self, ratio: float = 0.6, seed: int = 0) -> None:
        decoder = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 144}
        super().__init__(
            "videomae", small_model("videomae", "ForPreTraining", **{f"decoder_{k}": v for k, v in decoder.items()})
        )
        self.ratio, self.seed = ratio, seed

    def forward(self, batch: VideoBatch) -> StepOutput:
        assert batch.video is not None
        guess, truth = self.reconstruct(batch.video, batch.place[0], batch.indices)
        return StepOutput(F.mse_loss(guess, truth))

    def hidden(self, step: int, indices: list[int]) -> Bool[Tensor, "B N"]:
        """The same number of cells in every clip, drawn by place in the run."""
        t, h, w = self.backbone.grid
        out = torch.zeros(len(indices), t * h * w, dtype=torch.bool)
        for row, index in enumerate(indices):
            g = torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 65_537 + index)
            out[row, torch.randperm(out.shape[1], generator=g)[: round(self.ratio * out.shape[1])]] = True
        return out

    def reconstruct(self, video: Tensor, step: int, indices: list[int]) -> tuple[Tensor, Tensor]:
        """(guess, truth) of the hidden cells' pixels, each (B,hidden,τ·p·p·3)."""
        hidden = self.hidden(step, indices)
        pixels = video.permute(0, 1, 4, 2, 3)  # (B,T,H,W,C) -> (B,T,C,H,W)
        guess = self.model(pixel_values=pixels, bool_masked_pos=hidden).logits
        return guess, cells_of(video, self.model.config.tubelet_size)[hidden].view_as(guess)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Share of the hidden pixels' variance that is explained; the mean of all as a constant guess has 0."""
        assert self.held_out.video is not None
        parts = [self.reconstruct(part, 0, list(range(len(part)))) for part in self.held_out.video.split(CHUNK)]
        guess, truth = (torch.cat(side) for side in zip(*parts, strict=True))
        mean = truth.unflatten(-1, (-1, 3)).mean((0, 1, 2))
        spread = (truth.unflatten(-1, (-1, 3)) - mean).square().mean()
        return {"explained_variance": (1 - F.mse_loss(guess, truth) / spread).item()}


def cells_of(video: Float[Tensor, "B T H W 3"], frames: int, patch: int = PATCH) -> Float[Tensor, "B N P"]:
    """The pixels of each tubelet, in (frame, row, column, colour) order."""
    b, t, h, w, c = video.shape
    x = video.view(b, t // frames, frames, h // patch, patch, w // patch, patch, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, frames * patch * patch * c)
