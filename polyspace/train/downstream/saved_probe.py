"""A trained probe on disk: probe.safetensors, and probe.json with how to read it."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import TypedDict

from polyspace.models.heads import AttentiveHead, WeighedHead
from polyspace.utils.checkpoint_io import load_built, load_tensors, read_json, save_tensors, sha256_file, write_sealed
from polyspace.utils.errors import UserError


class About(TypedDict):
    pooling: str
    loss: str
    classes: list[str]
    dim: int
    encoder_sha256: str
    sha256: str


def save_probe(folder: Path, head: nn.Module, mean: Tensor, std: Tensor, about: dict[str, Any]) -> Path:
    """`about`: pooling, loss, classes, dim, and the encoder that it belongs to. Returns the tensors' file."""
    file = folder / "probe.safetensors"
    save_tensors(file, {"mean": mean, "std": std} | {f"head.{k}": v for k, v in head.state_dict().items()})
    write_sealed(folder / "probe.json", {"version": 1} | about | {"sha256": sha256_file(file)})
    return file


class Probe(nn.Module):
    """A trained probe: an encoder's tokens (B,M,D) with valid (B,M) -> scores of `classes` (B,K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, head: AttentiveHead | WeighedHead, dim: int, classes: list[str], several: bool) -> None:
        super().__init__()
        self.head, self.classes, self.several = head, classes, several
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def forward(self, tokens: Float[Tensor, "B M D"], valid: Bool[Tensor, "B M"]) -> Float[Tensor, "B K"]:
        x = torch.where(valid[..., None], (tokens - self.mean) / self.std, 0)
        return self.head(x, valid)


def load_probe(folder: str | Path) -> Probe:
    """The probe that `save_probe` wrote, in eval mode; `several` where a clip can have more than one class."""
    folder = Path(folder)
    about = read_json(folder / "probe.json", "probe", About)
    file = folder / "probe.safetensors"
    state = load_tensors(file, "probe")
    if sha256_file(file) != about["sha256"]:
        raise UserError(f"{file} is damaged: its sha256 is not the recorded one")
    if about["pooling"] == "saliency":
        raise UserError(f"{folder}: the probe needs saliency labels of every clip it is shown; train one without them")
    classes, dim = about["classes"], about["dim"]
    attentive = about["pooling"] == "attentive"

    def build() -> Probe:
        head = AttentiveHead(dim, len(classes)) if attentive else WeighedHead(dim, len(classes), about["pooling"])
        return Probe(head, dim, classes, about["loss"] == "bce")

    return load_built(build, state, file).eval()
