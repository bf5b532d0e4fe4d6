"""The phases of a run in order, each from where it stopped: `python main.py` and `polyspace train`."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from polyspace.config import Config, parse, validate
from polyspace.models.vjepa.saved import read_encoder
from polyspace.report.phase_sections import write_pipeline_report
from polyspace.train import CHECKS, PHASES
from polyspace.train.action_posttrain import ActionConfig
from polyspace.train.downstream.common import encoder_folder
from polyspace.train.encoders import EncoderConfig
from polyspace.train.language_align import LanguageConfig
from polyspace.train.machine import Machine, describe, make_machine
from polyspace.train.probe_train import ProbeConfig
from polyspace.train.settings import Track
from polyspace.train.vjepa.pretrain_config import DataConfig, PretrainConfig
from polyspace.utils.checkpoint_io import read_json, sha256_file, sha256_json, write_sealed
from polyspace.utils.distrib import initialize, is_distributed, is_main, lost_ranks, once, shutdown, world_size
from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.folders import sole_writer
from polyspace.utils.log import say, warn
from polyspace.utils.misc import set_seed
from polyspace.utils.precision import note_precision
from polyspace.utils.run_info import run_info


class RunConfig(Config):
    work_dir: Path = Field(Path("outputs"), description="folder of the run")
    sequence: str = Field("pretrain", description="phases to run, in order, separated by commas")
    seed: int = Field(0, ge=0, description="of everything that is drawn")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    init_from: Path | None = Field(None, description="folder of an encoder, or of a run with one, to start from")
    track: Track = ("auto",)
    local_rank: int | None = Field(None, description="added by some launchers; the environment decides")
    engine: Literal["auto", "ddp", "fsdp"] = Field("auto", description="how several processes work together; auto: ddp")
    use_deepspeed: int = Field(0, ge=0, le=1, description="1: DeepSpeed ZeRO, started by its launcher or torchrun")
    deepspeed_config: Path | None = Field(None, description="DeepSpeed's JSON file")
    precision: Literal["fp32", "bf16", "fp64"] = Field("fp32", description="bf16: autocast; fp64: for comparisons")
    context: int = Field(1, ge=1, description="ranks that share the tokens of the same clips (ring attention)")
    timeout: float = Field(30.0, gt=0, description="minutes after which a rank that does not answer is given up")
    data: DataConfig = Field(default_factory=partial(validate, DataConfig, {}))
    encoder: EncoderConfig = Field(default_factory=partial(validate, EncoderConfig, {}))
    pretrain: PretrainConfig = Field(default_factory=partial(validate, PretrainConfig, {}))
    language: LanguageConfig = Field(default_factory=partial(validate, LanguageConfig, {}))
    probe: ProbeConfig = Field(default_factory=partial(validate, ProbeConfig, {}))
    action: ActionConfig = Field(default_factory=partial(validate, ActionConfig, {}))


def phases_of(sequence: str) -> list[str]:
    """Names in order; an unknown or repeated one is a UserError before any work."""
    names = [name.strip() for name in sequence.split(",") if name.strip()]
    if not names:
        raise UserError("--sequence names no phase")
    for name in names:
        if name not in PHASES:
            known = ", ".join(PHASES)
            raise UserError(f"--sequence: no phase '{name}'{did_you_mean(name, PHASES)}; there are: {known}")
    if len(set(names)) < len(names):
        raise UserError(f"--sequence {sequence} names a phase twice")
    return names


def config_hash(config: RunConfig, phase: str) -> str:
    """Of everything that the phase's result depends on, the encoder that it starts from included."""
    values = config.model_dump(mode="json")
    parts = {key: values[key] for key in ("seed", "data", "encoder", "precision", phase)}
    if phase != "pretrain":
        folder = encoder_folder(getattr(config, phase).init_from or config.init_from, config.work_dir, phase)
        parts["from"] = read_encoder(folder)["sha256"]
    return sha256_json(parts)


def check(config: RunConfig, names: Sequence[str]) -> None:
    """UserError for what would stop a later phase, before any work."""
    for name in names:
        if name in CHECKS:
            CHECKS[name](config)
        own = name != "pretrain" and (getattr(config, name).init_from or config.init_from)
        if own or (name != "pretrain" and "pretrain" not in names[: names.index(name)]):
            encoder_folder(own or None, config.work_dir, name)


def dividing(config: RunConfig, names: Sequence[str], ranks: int) -> RunConfig:
    """The configuration with batches that these phases can share out. One that was asked for and doesn't divide is a
    UserError; a default one becomes the next that does."""
    for name in names:
        section = getattr(config, name)
        share = section.accumulate * ranks
        if section.batch % share == 0:
            continue
        if "batch" in section.model_fields_set:
            where = f"{section.accumulate} micro-batches on {ranks} ranks"
            raise UserError(f"{name}.batch: a batch of {section.batch} does not divide into {where}")
        batch = -(-section.batch // share) * share
        if is_main():
            warn(f"{name}.batch is {batch} instead of {section.batch}, so that each of {ranks} ranks has its part")
        config = config.model_copy(update={name: section.model_copy(update={"batch": batch})})
    return config


def run(config: RunConfig) -> dict[str, Any]:
    """Run what is not finished yet and return the manifest, which is written after every phase."""
    names = phases_of(config.sequence)
    if world_size() > 1 and not is_distributed():
        raise UserError("several ranks would each run the whole job in one folder: torchrun starts main.py only")
    engine = "deepspeed" if config.use_deepspeed else config.engine
    machine = make_machine(config.device, engine, config.precision, config.context, config.deepspeed_config)
    note_precision(machine.precision, machine.device)
    machine = replace(machine, track=config.track)
    config = dividing(config, names, machine.world.data_size)
    check(config, names)
    with ExitStack() as held:
        once(lambda: held.enter_context(sole_writer(config.work_dir)))
        return _run_phases(config, names, machine)


def _run_phases(config: RunConfig, names: list[str], machine: Machine) -> dict[str, Any]:
    manifest = once(lambda: _begin(config))
    if is_distributed():
        say(describe(machine))
    for name in names:
        identity = config_hash(config, name)
        done = manifest["phases"].get(name)
        if once(partial(_finished, done, identity)):
            say(f"{name}: finished before ({done['checkpoint']})")
            continue
        set_seed(config.seed)
        start = time.monotonic()
        result = PHASES[name](config, config.work_dir / name, machine)
        manifest["phases"][name] = result | {
            "config_hash": identity,
            "seconds": round(time.monotonic() - start, 1),
        }
        once(partial(_record, config, manifest))
    return manifest


class Done(TypedDict):
    config_hash: str
    checkpoint: str
    sha256: dict[str, str]


class Manifest(TypedDict):
    """What the next run needs of pipeline_manifest.json; further keys are for reports."""

    phases: dict[str, Done]


def _begin(config: RunConfig) -> dict[str, Any]:
    """The run's folder, with run.json; its manifest as it is so far."""
    about = config.work_dir / "run.json"
    if not about.is_file():  # a killed first run leaves it too
        write_sealed(about, run_info("train", config))
    path = config.work_dir / "pipeline_manifest.json"
    return read_json(path, "pipeline manifest", Manifest) if path.is_file() else {"version": 1, "phases": {}}


def _record(config: RunConfig, manifest: dict[str, Any]) -> None:
    write_sealed(config.work_dir / "pipeline_manifest.json", manifest)
    write_sealed(config.work_dir / "run.json", run_info("train", config))


def _finished(done: dict[str, Any] | None, identity: str) -> bool:
    return done is not None and done["config_hash"] == identity and _intact(done)


def _intact(done: dict[str, Any]) -> bool:
    """The phase's checkpoint is still there, and its result bit for bit."""
    files = [Path(file) for file in done["sha256"]]
    whole = all(file.is_file() and sha256_file(file) == done["sha256"][str(file)] for file in files)
    return Path(done["checkpoint"]).is_dir() and whole


def main(argv: Sequence[str]) -> int:
    config = parse(
        RunConfig,
        argv,
        prog="main.py",
        about="Train H-Net V-JEPA phase by phase; without data, on generated clips with a small model.",
        example="python main.py --work_dir outputs --sequence pretrain,language,probe,action",
    )
    initialize(60 * config.timeout, cpu=config.device == "cpu")
    with lost_ranks(config.timeout):
        manifest = run(config)
        page = once(lambda: write_pipeline_report(config.work_dir, manifest, "PolySpace run", []))
    say(f"-> {page}")
    shutdown()
    return 0
