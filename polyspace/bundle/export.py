"""`polyspace export`: a bundle's encoder as a torch.export program and its converters as ONNX, each checked equal."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from polyspace.bundle.files import load_bundle
from polyspace.bundle.gather import gather
from polyspace.bundle.parts import Bundle
from polyspace.config import Config, parse, run_command
from polyspace.models.backbones.hnet_vjepa import HouseBackbone
from polyspace.models.hnet.exportable import ExportableEncoder
from polyspace.models.vjepa.vit import HNetViT
from polyspace.utils.checkpoint_io import try_writing, write_bytes, write_sealed
from polyspace.utils.errors import UserError
from polyspace.utils.folders import clear_left_over
from polyspace.utils.log import say
from polyspace.utils.run_info import run_info

CLOSE = 1e-4  # of the largest number: farther apart than this is another function


class ExportConfig(Config):
    bundle: Path = Field(description="folder of a bundle, or of a main.py run")
    out: Path = Field(description="folder of the exported files")
    num_chunks: int | None = Field(None, ge=1, description="tokens a clip of the exported encoder; none: the bundle's")
    opset: int = Field(18, ge=18, description="ONNX operator set")


def export_encoder(bundle: Bundle, path: Path, num_chunks: int | None = None) -> dict[str, Any]:
    """Write the student as a torch.export program for 1 to 1024 clips: video -> tokens, valid, clip feature.

    UserError for a student that isn't ours, or a chunk encoder without a budget; returns what was compared.
    """
    backbone = bundle.card.load()
    if not isinstance(backbone, HouseBackbone):
        raise UserError(f"only hnet_vjepa is exported; {bundle.card.name} comes with exporters of its own")
    budget = num_chunks or bundle.card.num_chunks
    if budget is None and isinstance(backbone.encoder, HNetViT):
        raise UserError("an exported chunk encoder has a fixed number of tokens: give --num_chunks")
    try:
        model = ExportableEncoder(backbone.encoder, budget)
    except ValueError as error:
        raise UserError(str(error)) from error
    video = torch.randn(2, *bundle.card.input_shape, generator=torch.Generator().manual_seed(0))
    video[1, 1:] = video[1, :1]  # and one that stands still
    batch = torch.export.Dim("batch", min=1, max=1024)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (video,), dynamic_shapes=({0: batch},))
        _atomic(path, lambda place: torch.export.save(program, place))
    other = torch.cat([video.flip(2), video[:1]])  # another number of clips, other content
    again = torch.export.load(path).module()
    with torch.no_grad():
        made, truth = again(other), HouseBackbone(backbone.encoder, budget)(other).pooled
        pairs = [*zip(made, model(other), strict=True), (made[2], truth)]
        apart = torch.tensor([_apart(a, b) for a, b in pairs]).max().item()  # nan stays nan
    _check(path, apart)
    shapes = {
        "video": ["batch", *bundle.card.input_shape],
        "tokens": ["batch", again(other)[0].shape[1], bundle.card.dim],
    }
    return {"file": path.name, "num_chunks": budget, "farthest": apart, **shapes}


def export_converter(converter: nn.Module, dim: int, path: Path, opset: int = 18) -> dict[str, Any]:
    """Write a converter as ONNX, x (batch,D) -> y (batch,E), and compare it in onnxruntime."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("ONNX needs its packages: pip install 'polyspace[onnx]'") from error
    x = torch.randn(3, dim, generator=torch.Generator().manual_seed(0))
    batch = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            converter.eval().cpu(),
            (x,),
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=batch,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    write_bytes(path, program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    other = torch.randn(5, dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        apart = _apart(torch.from_numpy(session.run(None, {"x": other.numpy()})[0]), converter(other))
    _check(path, apart)
    return {"file": path.name, "farthest": apart}


def _atomic(path: Path, write: Any) -> None:
    """Through a temporary file: the program's writer takes a path only."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / path.name
        write(place)
        write_bytes(path, place.read_bytes())


def _apart(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()


def _check(path: Path, apart: float) -> None:
    if not apart <= CLOSE:
        path.unlink()
        raise UserError(f"{path.name} differs from the model by {apart:.1e} of the largest value; it is not kept")


def main(argv: Sequence[str]) -> int:
    config = parse(
        ExportConfig,
        argv,
        prog="polyspace export",
        about="The encoder as a torch.export program, converters as ONNX; both are compared with the model.",
        example="polyspace export --bundle bundle --out exported --num_chunks 64",
    )
    is_bundle = (config.bundle / "bundle.json").is_file()
    bundle = load_bundle(config.bundle) if is_bundle else gather(run=config.bundle)
    try_writing(config.out)
    clear_left_over(config.out)
    found: dict[str, Any] = {}
    budget = config.num_chunks or bundle.card.num_chunks or "tubelets" in bundle.card.pooling
    if bundle.card.backend == "polyspace" and not budget and bundle.converters is not None:
        say("the encoder is left out: it has a fixed number of tokens only with --num_chunks")
    elif bundle.card.backend == "polyspace":
        found["encoder"] = export_encoder(bundle, config.out / "encoder.pt2", config.num_chunks)
        say(f"encoder.pt2: farthest from the model {found['encoder']['farthest']:.1e} of the largest value")
    for kind, bank in (("clip", bundle.converters), ("tokens", bundle.tokens)):
        for name in bank.dims if bank is not None else {}:
            assert bank is not None
            file = config.out / (f"{name}.onnx" if kind == "clip" else f"{name}_tokens.onnx")
            found[file.stem] = export_converter(bank[name], bundle.card.dim, file, config.opset)
            say(f"{file.name}: farthest from the model {found[file.stem]['farthest']:.1e} of the largest value")
    if not found:
        raise UserError(f"{config.bundle} holds nothing to export: no encoder of ours, no converters")
    about = {
        "student": bundle.card.about(),
        "files": found,
        "run": run_info("export", config),
    }
    write_sealed(config.out / "export.json", about)
    say(f"-> {config.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
