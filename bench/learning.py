"""Does H-Net V-JEPA learn, and better than tubelets at equal compute? Probes after pretraining, with all controls.

    python bench/learning.py --out docs/results/learning.json --work outputs/learning
    python bench/learning.py --group equal_steps --steps 4000 --out docs/results/learning_equal_steps.json
    python bench/learning.py --group sweep --seconds 360 --seeds 1 --out docs/results/learning_sweep.json
    python bench/learning.py --group ablation --steps 4000 --out docs/results/learning_ablation.json
    python bench/learning.py --group front --steps 4000 --out docs/results/learning_front.json

Every arm runs in a process of its own with one thread and a core, `--jobs` at a time; its length is `--seconds` of its
own speed, or `--steps` updates. The speed is measured in CPU time over some updates before the run, and is off by some
percent (three times the same arithmetic: 8101, 8261, 8706 updates): the seconds that an arm took stand in the results.
A finished arm is kept in --work and in --out, written anew after each, and is not run again; a killed one goes on from
its last checkpoint in --work. Settings are chosen
on the validation part: sweep and ablation measure nothing else. The test part was drawn anew once
settings were chosen: figures of an earlier one stand in docs/log.md.
"""

import argparse
import datetime
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from learning_arms import ABLATIONS, ARMS, CLASSES, CLIPS, EQUAL_STEPS, FRONT, PARTS, SWEEP, Arm
from learning_figure import chunk_figures, front_figure, learning_figure
from learning_measure import measure, measure_choice, raw_pixels, target_of
from learning_report import MEASURES, collect, note_states, show, summary
from learning_store import arm_folder, code_hash, finished, identity, result_file, save, unpack

from polyspace.data import moving, render
from polyspace.data.clip_source import MemoryClips
from polyspace.data.moving import MovingClips, moving_clips
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.train.checkpoint import load_checkpoint
from polyspace.train.encoders import build_encoder
from polyspace.train.engine import PlainEngine
from polyspace.train.loop import fit
from polyspace.train.optim import build_adamw
from polyspace.train.pretrain import build_phase
from polyspace.train.settings import fit_settings
from polyspace.train.supervised import SupervisedPhase
from polyspace.train.vjepa.jepa import JepaPhase
from polyspace.utils.checkpoint_io import load_tensors, read_json, save_tensors, sha256_json, write_json
from polyspace.utils.log import say
from polyspace.utils.misc import set_seed

Arms = dict[str, dict[str, Any]]
FULL = ("main", "equal_steps")  # of the others only what settings are chosen by is measured
GROUPS = {"main": ARMS, "equal_steps": EQUAL_STEPS, "ablation": ABLATIONS, "sweep": SWEEP, "front": FRONT}


def clips(work: Path, part: str) -> MovingClips:
    """A part's clips, drawn once and kept under a name of all that they depend on."""
    drawn = sha256_json([CLIPS, PARTS[part], *(Path(m.__file__).read_text() for m in (moving, render))])[:10]
    path = work / f"{part}_{drawn}.safetensors"
    if not path.is_file():
        made = moving_clips(PARTS[part][0], PARTS[part][1], keep_mask=part == "test", **CLIPS)
        save_tensors(path, {name: tensor for name, tensor in vars(made).items() if tensor is not None})
    return MovingClips(**({"mask": None} | load_tensors(path)))


def build(arm: Arm, steps: int, seed: int) -> JepaPhase | SupervisedPhase:
    set_seed(seed)
    encoder = build_encoder(arm.encoder_config())
    if arm.supervised:
        return SupervisedPhase(encoder, CLASSES)
    return build_phase(encoder, arm.pretrain_config(steps), seed)


def seconds_per_step(arm: Arm, source: MemoryClips, seed: int, steps: int = 96) -> float:
    """Measured on a copy that is thrown away; the first updates are not counted. The step depends on how much is seen,
    so the mean is over several masks."""
    phase = build(arm, 1000, seed)
    settings = arm.pretrain_config(1000)
    engine = PlainEngine(phase, build_adamw(phase, settings.lr, settings.weight_decay), torch.device("cpu"))
    start = 0.0
    for step in range(steps + 4):
        if step == 4:
            start = time.process_time()
        batch = source.batch(torch.arange(settings.batch) + step * settings.batch)
        engine.update([replace(batch, place=(step, 0))], 1e-6)
        phase.after_update(step)
    return (time.process_time() - start) / steps


def run_arm(name: str, arm: Arm, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train (or leave at random init) and measure one arm; the sweep measures only what settings are chosen by."""
    key = identity(arm, args)
    folder = arm_folder(args.work, name, key, seed)
    work, seconds, steps, choice = args.work, args.seconds, args.steps, args.group not in FULL
    plan_file, result = folder / "plan.json", {"name": name, "seed": seed, "identity": key, "code": code_hash()}
    torch.set_num_threads(1)
    if arm.pretrain is None:
        phase = build(arm, 1, seed)
    else:
        pretrain = clips(work, "pretrain")
        source = MemoryClips(pretrain.video, pretrain.label)
        if not plan_file.is_file():
            rate = seconds_per_step(arm, source, seed)
            length = steps or max(20, int(seconds / rate))
            write_json(plan_file, {"seconds_per_step": rate, "steps": length, "code": code_hash()})
        plan = read_json(plan_file)
        result["code_at_start"] = plan.get("code", "not recorded")
        phase = build(arm, plan["steps"], seed)
        config = arm.pretrain_config(plan["steps"])
        engine = PlainEngine(phase, build_adamw(phase, config.lr, config.weight_decay), torch.device("cpu"))
        start = time.perf_counter(), time.process_time()
        metrics = fit(engine, len(source), source.batch, fit_settings(config, seed), folder, name=f"{name} {seed}")
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        result |= {"seconds_last_start": round(wall, 1), "cpu_seconds_last_start": round(cpu, 1)}
        result |= {"steps": plan["steps"], "last": metrics}
        result |= {"clips_per_s": config.batch / plan["seconds_per_step"]}
        result |= {"train_ms": 1e3 * plan["seconds_per_step"] / config.batch}
        result |= {"planned_seconds": round(plan["steps"] * plan["seconds_per_step"], 1)}
    if choice:
        return result | measure_choice(phase, {part: clips(work, part) for part in ("train", "validation")})
    return result | measure(phase, arm, {part: clips(work, part) for part in ("train", "validation", "test")})


def spawn(group: str, name: str, seed: int, args: argparse.Namespace, core: int) -> subprocess.Popen:
    line = [sys.executable, __file__, "--group", group, "--one", name, "--seed", str(seed), "--work", str(args.work)]
    line += ["--seconds", str(args.seconds), *(["--steps", str(args.steps)] if args.steps else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CI": "true"}
    cores = sorted(os.sched_getaffinity(0))
    pinned = {cores[core % len(cores)]}
    return subprocess.Popen(line, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, pinned))


def run_all(group: str, untrained: Arms, args: argparse.Namespace) -> None:
    """All arms × seeds, `jobs` at a time, one core each; those with a result file are kept."""
    arms = {n: arm for n, arm in GROUPS[group].items() if not args.only or n in args.only}
    wanted = [(n, s) for s in range(args.seeds) for n in arms if s < arms[n].seeds]
    single = [f"{n} ({arm.seeds})" for n, arm in arms.items() if arm.seeds < args.seeds]
    if single:
        say(f"fewer than {args.seeds} seeds: {', '.join(single)}")
    todo = [(n, s) for n, s in wanted if not result_file(args.work, n, identity(arms[n], args), s).is_file()]
    if len(todo) < len(wanted):
        say(f"{len(wanted) - len(todo)} of {len(wanted)} results kept from before")
    running: dict[int, tuple[subprocess.Popen, str]] = {}
    while todo or running:
        for core in range(args.jobs):
            if core in running and running[core][0].poll() is not None:
                process, label = running.pop(core)
                if process.returncode:
                    raise SystemExit(f"{label} failed with exit code {process.returncode}")
                publish(group, untrained, args)
            if core not in running and todo:
                name, seed = todo.pop(0)
                say(f"{datetime.datetime.now():%H:%M} {name} seed {seed}")
                running[core] = (spawn(group, name, seed, args, core), f"{name} seed {seed}")
        time.sleep(0.5)


def publish(group: str, untrained: Arms, args: argparse.Namespace) -> dict[str, Any]:
    """The table of what is finished and of what needs no encoder, written to --out."""
    arms = collect(finished(GROUPS[group], args), MEASURES if group in FULL else ())
    about = summary(arms | untrained, None if args.steps else args.seconds, args.steps, args.jobs)
    if args.out:
        write_json(args.out, about)
    return about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("outputs/learning"))
    parser.add_argument("--group", choices=GROUPS, default="main")
    parser.add_argument("--only", nargs="+", help="these arms alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1200.0, help="time of an arm, by its speed before the run")
    parser.add_argument("--steps", type=int, help="updates an arm, instead of --seconds")
    parser.add_argument("--jobs", type=int, default=2, help="arms at a time, one core each")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.group == "equal_steps" and not args.steps:
        parser.error("--group equal_steps needs --steps")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.one:
        save(args.work, run_arm(args.one, GROUPS[args.group][args.one], args.seed, args))
        return
    for part in PARTS:
        clips(args.work, part)
    if args.out and args.out.is_file() and (kept := unpack(read_json(args.out), args.work)):
        say(f"{kept} results from {args.out}")
    untrained: Arms = {}
    if args.group == "main":
        pixels = raw_pixels({part: clips(args.work, part) for part in ("train", "validation", "test")})
        untrained["raw_pixels"] = {key: [None] for key in MEASURES} | {key: [value] for key, value in pixels.items()}
    run_all(args.group, untrained, args)
    about = publish(args.group, untrained, args)
    show(about["arms"])
    note_states(about["arms"])
    if args.out:
        say(f"-> {args.out}")
        for picture in pictures(args) if args.group == "main" else fronts(args) if args.group == "front" else []:
            say(f"-> {picture}")


def fronts(args: argparse.Namespace) -> list[Path]:
    return [front_figure(read_json(args.out), args.out.with_suffix(".png"))]


def pictures(args: argparse.Namespace) -> list[Path]:
    """Beside the JSON: the arms, and the first H-Net run's chunks of held-out clips."""
    stem = args.out.with_suffix("")
    made = [learning_figure(read_json(args.out), stem.with_suffix(".png"))]
    encoder = trained("hnet_vjepa", ARMS["hnet_vjepa"], 0, args)
    if encoder is not None:
        made += chunk_figures(encoder, clips(args.work, "test"), stem)
    return made


def trained(name: str, arm: Arm, seed: int, args: argparse.Namespace) -> HNetViT | TubeletViT | None:
    """The (target) encoder of an arm's last state; None where --work holds none."""
    phase = build(arm, 1, 0)
    engine = PlainEngine(phase, build_adamw(phase, 1e-3, 0.0), torch.device("cpu"))
    found = load_checkpoint(arm_folder(args.work, name, identity(arm, args), seed), engine)
    return None if found is None else target_of(phase.eval())


if __name__ == "__main__":
    main()
