"""V-JEPA 2, VideoMAE, TimeSformer and ViViT through transformers, each fed as its checkpoint says.

Tokens come after the model's final norm, in (time, row, column) order, without the class token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from polyspace.models.backbones.base import Backbone, BackboneCard, Classifier
from polyspace.models.backbones.checkpoints import Checkpoint, WeightsUnavailable, find_checkpoint, weight_files
from polyspace.models.backbones.fused import fuse
from polyspace.models.backbones.plans import MOST, default_plan, read_plan
from polyspace.models.features import Features
from polyspace.utils.checkpoint_io import load_built, load_tensor, tensor_names
from polyspace.utils.errors import UserError
from polyspace.utils.reading import FAULTS, brief, reads


@dataclass(frozen=True)
class Family:
    """What sets one architecture apart. `cls` is the number of class tokens, `order` the layout of the others."""

    model_class: str
    model_type: str
    default_id: str
    input_name: str
    cls: int
    order: str
    attention: str
    pooling: str
    trained: str


FAMILIES = {
    "vjepa2": Family(
        "VJEPA2Model",
        "vjepa2",
        "facebook/vjepa2-vitl-fpc64-256",
        "pixel_values_videos",
        0,
        "THW",
        "sdpa",
        "mean",
        "self-supervised",
    ),
    "videomae": Family(
        "VideoMAEModel",
        "videomae",
        "MCG-NJU/videomae-base",
        "pixel_values",
        0,
        "THW",
        "sdpa",
        "mean",
        "self-supervised",
    ),
    "timesformer": Family(
        "TimesformerModel",
        "timesformer",
        "facebook/timesformer-base-finetuned-k400",
        "pixel_values",
        1,
        "HWT",
        "eager",  # the class has no sdpa: `fuse` gives it one
        "cls",
        "supervised (every public TimeSformer is, on K400, K600 or SSv2)",
    ),
    "vivit": Family(
        "VivitModel",
        "vivit",
        "google/vivit-b-16x2-kinetics400",
        "pixel_values",
        1,
        "THW",
        "sdpa",
        "cls",
        "supervised on K400",
    ),
}


# clip features that the heads of ForVideoClassification read (VideoMAE without fc_norm: one token; V-JEPA 2: all)
_READ_BY_HEADS = {"vjepa2": (), "videomae": ("mean, then fc_norm",), "timesformer": ("cls",), "vivit": ("cls",)}


def describe(name: str, checkpoint: str | None, revision: str | None, frames: int) -> BackboneCard:
    """The card of a checkpoint (or of the family's default id). Raises WeightsUnavailable or UserError."""
    try:
        import transformers
    except ImportError as error:
        raise WeightsUnavailable("transformers is not installed (pip install transformers)") from error
    transformers.utils.logging.disable_progress_bar()
    family = FAMILIES[name]
    found = find_checkpoint(checkpoint or family.default_id, revision)
    raw = found.json("config.json") or {}
    if raw.get("model_type") != family.model_type:
        raise UserError(
            f"--checkpoint {name}={found.name}: its model_type is {raw.get('model_type')!r:.80}, not {name}"
        )
    config = _config(found)
    with reads(f"{found.name}/config.json", "configuration"):
        plan = read_plan(name, config, frames, found)
        grid = token_grid(name, config, plan.frames, plan.crop)
        head = bool(raw.get("architectures")) and raw["architectures"][0].endswith("ForVideoClassification")
        if min(*grid, plan.frames, config.hidden_size) < 1 or max(*plan.crop, plan.frames, config.hidden_size) > MOST:
            raise ValueError(f"a grid of {grid} tokens, width {config.hidden_size}, from {plan.frames} of {plan.crop}")
    pooling = "mean, then fc_norm" if name == "videomae" and head and config.use_mean_pooling else family.pooling
    return BackboneCard(
        name=name,
        backend="transformers",
        checkpoint=found.name,
        revision=found.revision,
        digest=found.digest,
        dim=config.hidden_size,
        grid=grid,
        pooling=pooling,
        plan=plan,
        load=lambda: _load(name, found, config, plan.crop, plan.frames, "fc_norm" in pooling),
        skeleton=lambda: _skeleton(name, config, plan.crop, plan.frames, "fc_norm" in pooling),
        trained=_trained(family, found, head),
        files=weight_files(found.folder),
        classifier=lambda: _load_classifier(found, config) if head and pooling in _READ_BY_HEADS[name] else None,
    )


def _config(found: Checkpoint) -> Any:
    """transformers' configuration; its own checks have many types of errors."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(found.folder)
    except Exception as error:
        raise UserError(f"{found.name}/config.json is no configuration of its model ({brief(error)})") from error


def _trained(family: Family, found: Checkpoint, head: bool) -> str:
    """What a checkpoint learned from, by its folder's about.json, by its publishers, or as far as its head tells."""
    about = found.json("about.json")
    if about and isinstance(about.get("objective"), str):
        return about["objective"]
    if found.name == family.default_id:
        return family.trained
    return "supervised: it has a classification head" if head else "not said by its folder"


def default_card(name: str, frames: int) -> BackboneCard:
    """The card of the architecture at its default size, without any weights: for arithmetic about real sizes."""
    import transformers

    family = FAMILIES[name]
    config = getattr(transformers, family.model_class.replace("Model", "Config"))()
    plan = default_plan(name, config, frames)

    def no_weights() -> Backbone:
        raise WeightsUnavailable(f"{name}: this card describes the architecture only")

    return BackboneCard(
        name=name,
        backend="transformers",
        checkpoint="architecture defaults",
        revision="",
        digest="",
        dim=config.hidden_size,
        grid=token_grid(name, config, plan.frames, plan.crop),
        pooling=family.pooling,
        plan=plan,
        load=no_weights,
        skeleton=lambda: _skeleton(name, config, plan.crop, plan.frames, False),
        trained=family.trained,
    )


def token_grid(name: str, config: Any, frames: int, crop: tuple[int, int]) -> tuple[int, int, int]:
    """(t,h,w) of the tokens."""
    if name == "vivit":
        step, rows, columns = config.tubelet_size
        return frames // step, crop[0] // rows, crop[1] // columns
    step = 1 if name == "timesformer" else config.tubelet_size
    return frames // step, crop[0] // config.patch_size, crop[1] // config.patch_size


class HFBackbone(Backbone):
    """A transformers encoder behind our input and output forms."""

    model: Any

    def __init__(self, name: str, model: nn.Module, norm: nn.Module | None, frames: int, crop: tuple[int, int]) -> None:
        super().__init__()
        self.name, self.family = name, FAMILIES[name]
        self.model, self.head_norm = model, norm
        self.frames, self.crop = frames, crop
        self.grid = token_grid(name, model.config, frames, crop)

    def forward(self, video: Float[Tensor, "B T H W 3"]) -> Features:
        if video.shape[1] != self.frames or tuple(video.shape[2:4]) != self.crop:
            got, want = tuple(video.shape[1:4]), (self.frames, *self.crop)
            raise ValueError(f"{self.name} takes clips of (frames, height, width) {want}, got {got}")
        pixels = video.permute(0, 1, 4, 2, 3)  # (B,T,H,W,C) -> (B,T,C,H,W)
        extra = {"skip_predictor": True} if self.name == "vjepa2" else {}
        hidden = self.model(**{self.family.input_name: pixels}, **extra).last_hidden_state
        cls, tokens = hidden[:, : self.family.cls], hidden[:, self.family.cls :]
        t, h, w = self.grid
        if tokens.shape[1] != t * h * w:
            raise ValueError(f"{self.name} gave {tokens.shape[1]} tokens where its grid is {t}x{h}x{w}")
        if self.family.order == "HWT":
            tokens = tokens.unflatten(1, (h * w, t)).transpose(1, 2).flatten(1, 2)  # (B,HW·T,D) -> (B,T·HW,D)
        clip = cls[:, 0] if self.family.cls else tokens.mean(1)
        return Features(tokens, self.grid, self.head_norm(clip) if self.head_norm is not None else clip)


def _without_predictor(model: nn.Module) -> nn.Module:
    """V-JEPA 2's class carries the predictor; only the encoder serves features."""
    if hasattr(model, "predictor"):
        model.predictor = nn.Identity()
    return model


def _head_norm(config: Any) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size)


def _skeleton(name: str, config: Any, crop: tuple[int, int], frames: int, fc_norm: bool) -> HFBackbone:
    import transformers

    family = FAMILIES[name]
    model = getattr(transformers, family.model_class)._from_config(config, attn_implementation=family.attention)
    return HFBackbone(name, fuse(_without_predictor(model)), _head_norm(config) if fc_norm else None, frames, crop)


def _check_size(name: str, found: Checkpoint, config: Any) -> None:
    """UserError where config.json describes a model that its weights can't be those of: what they lack would be drawn
    at random, however much it is, before anyone could see that it is missing."""
    import transformers

    files = sorted(found.folder.glob("*.safetensors"))
    tensors, size = sum(len(tensor_names(file)) for file in files), sum(file.stat().st_size for file in files)
    with reads(f"{found.name}/config.json", "configuration"):
        layers = [v for k, v in config.to_dict().items() if k.endswith("_layers") and isinstance(v, int)]
        if max(layers, default=0) > max(tensors, 64):
            raise ValueError(f"{max(layers)} layers, where the weights are {tensors} tensors")
        with torch.device("meta"):
            model = getattr(transformers, FAMILIES[name].model_class)._from_config(config)
        numbers = sum(p.numel() for p in model.parameters())
        if numbers > 2 * size + (1 << 24):  # two bytes a number, and V-JEPA 2's predictor may be left out
            raise ValueError(f"{numbers} parameters, where the weights are {size} bytes")


def _load(name: str, found: Checkpoint, config: Any, crop: tuple[int, int], frames: int, fc_norm: bool) -> Backbone:
    import transformers

    _check_size(name, found, config)
    family = FAMILIES[name]
    loader: Callable[..., Any] = getattr(transformers, family.model_class).from_pretrained
    try:
        model, report = loader(
            found.folder,
            attn_implementation=family.attention,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
        )
    except (SafetensorError, *FAULTS) as error:
        raise UserError(f"--checkpoint {name}={found.name} can't be loaded ({brief(error)})") from error
    lacking = sorted(k for k in report["missing_keys"] if not k.startswith("predictor") and "pooler" not in k)
    if lacking or report.get("mismatched_keys"):
        raise UserError(f"--checkpoint {name}={found.name} lacks weights of its own architecture, e.g. {lacking[:1]}")
    norm = _load_head_norm(found, model.config) if fc_norm else None
    backbone = HFBackbone(name, fuse(_without_predictor(model)), norm, frames, crop)
    return backbone.eval().requires_grad_(False)


def _load_head_norm(found: Checkpoint, config: Any) -> nn.LayerNorm:
    """Fine-tuned VideoMAE keeps its final norm in the classification head."""
    return load_built(lambda: _head_norm(config), _tensors(found, "fc_norm."), found.folder)


def _load_classifier(found: Checkpoint, config: Any) -> Classifier:
    linear = load_built(
        lambda: nn.Linear(config.hidden_size, config.num_labels), _tensors(found, "classifier."), found.folder
    )
    return Classifier(linear.eval().requires_grad_(False), [config.id2label[k] for k in range(config.num_labels)])


def _tensors(found: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """The checkpoint's tensors under a prefix, which is taken off."""
    return {
        key.removeprefix(prefix): load_tensor(file, key).float()
        for file in sorted(found.folder.glob("*.safetensors"))
        for key in tensor_names(file)
        if key.startswith(prefix)
    }
