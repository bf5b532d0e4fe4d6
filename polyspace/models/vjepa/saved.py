"""An encoder on disk: encoder.safetensors, and encoder.json with how to build it and what goes in."""

import inspect
import math
import typing
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import NotRequired, TypedDict

from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.utils.checkpoint_io import load_built, load_tensors, read_json, save_tensors, sha256_file, write_sealed
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.reading import FAULTS, brief, check_form, reads

VERSION = 2  # 2: single numbers have a dim
ARCHITECTURES: dict[str, type[HNetViT] | type[TubeletViT]] = {"hnet": HNetViT, "tubelet": TubeletViT}


MOST, MOST_LAYERS = 1 << 16, 1 << 9  # of any size that encoder.json may ask for


class Input(TypedDict):
    frames: int
    size: int
    mean: list[float]
    std: list[float]


class About(TypedDict):
    encoder: dict[str, Any]
    sha256: str
    data: NotRequired[dict[str, Any]]
    input: NotRequired[Input | None]


def make_encoder(values: dict[str, Any], where: str = "encoder") -> HNetViT | TubeletViT:
    """`values`: `arch`, and every argument of its constructor; `preset` is a remark. UserError names what is wrong."""
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k not in ("arch", "preset")
    }
    arch = values.get("arch")
    if arch not in ARCHITECTURES:
        raise UserError(f"{where}: arch {arch!r} is unknown{did_you_mean(str(arch), ARCHITECTURES)}")
    known = inspect.signature(ARCHITECTURES[arch]).parameters
    for key in given:
        if key not in known:
            raise UserError(f"{where}: {key} has no meaning for arch {arch}{did_you_mean(key, known)}")
    hints = typing.get_type_hints(ARCHITECTURES[arch].__init__)
    for key, value in given.items():
        check_form(value, hints.get(key, Any), where, f"{key} of an encoder in")
        most = MOST_LAYERS if key in ("depth", "cell_depth", "conv_blocks") else MOST
        if any(isinstance(v, int) and abs(v) > most for v in (value if isinstance(value, tuple) else (value,))):
            raise UserError(f"{where}: {key} of {value!r:.40} is beyond reason (at most {most})")
    try:
        return ARCHITECTURES[arch](**given)
    except (AssertionError, *FAULTS) as error:
        raise UserError(f"{where}: {brief(error)}") from error


def save_encoder(
    folder: Path, encoder: nn.Module, values: dict[str, Any], data: dict[str, Any], input: dict[str, Any]
) -> None:
    """`values` as for `make_encoder`; `data`: what it learned from; `input`: frames, size, mean, std."""
    save_tensors(folder / "encoder.safetensors", encoder.state_dict())
    about = {"version": VERSION, "encoder": values, "data": data, "input": input}
    write_sealed(folder / "encoder.json", about | {"sha256": sha256_file(folder / "encoder.safetensors")})


def find_encoder(base: Path) -> Path | None:
    """The folder of an encoder: `base`, or the pretraining phase of a run there; None where neither holds one."""
    return next((f for f in (base, base / "pretrain") if (f / "encoder.json").is_file()), None)


def read_encoder(folder: Path) -> dict[str, Any]:
    """What encoder.json says: `encoder`, `data`, `input`, `sha256`; UserError where no clip can be made as it says."""
    about: dict[str, Any] = read_json(folder / "encoder.json", "encoder", About)
    if about.get("input") is not None:
        _check_input(about["input"], folder / "encoder.json")
    return about


def _check_input(taken: dict[str, Any], where: Path) -> None:
    with reads(where, "encoder"):  # a number may be too large for a float
        mean, std = ([float(v) for v in taken[key]] for key in ("mean", "std"))
    if not len(mean) == len(std) == 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise UserError(f"{where}: mean and std are not three numbers each, std above 0")
    if not (1 <= taken["frames"] <= MOST and 1 <= taken["size"] <= MOST):
        raise UserError(f"{where}: clips of {taken['frames']!r:.40} frames of {taken['size']!r:.40} pixels")


def load_encoder(folder: str | Path) -> HNetViT | TubeletViT:
    """The encoder that `save_encoder` wrote, in eval mode. UserError for a missing, damaged or unfit file."""
    folder = Path(folder)
    about, file = read_encoder(folder), folder / "encoder.safetensors"
    if not file.is_file():
        raise UserError(f"encoder {file} does not exist")
    if sha256_file(file) != about["sha256"]:
        raise UserError(f"{file} is damaged: its sha256 is not the recorded one")
    state = load_tensors(file, "encoder")
    if about.get("version") == 1:
        state = {key: value.reshape(1) if value.ndim == 0 else value for key, value in state.items()}
    return load_built(lambda: make_encoder(about["encoder"], str(folder / "encoder.json")), state, folder).eval()
