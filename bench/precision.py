"""Does bf16 autocast train as fp32 does? Loss curves of pretraining, and how far apart they are beside chance.

    python bench/precision.py --out docs/results/precision.json

One small encoder on generated clips, from one start and in one order, in fp32 and in bf16 autocast; and in fp32 with
another order of clips and masks (another seed), and from another start: how far two runs are apart that nobody would
tell from one another. Distances are mean |a − b| / a over smoothed curves (a window of WINDOW updates).
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from polyspace.data.clip_source import MemoryClips
from polyspace.data.moving import moving_clips
from polyspace.train.encoders import EncoderConfig, build_encoder
from polyspace.train.engine import Precision
from polyspace.train.loop import fit
from polyspace.train.machine import make_machine
from polyspace.train.pretrain import build_phase
from polyspace.train.settings import fit_settings
from polyspace.train.vjepa.pretrain_config import PretrainConfig
from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.log import say
from polyspace.utils.run_info import run_info

WINDOW = 20
RUNS: dict[str, tuple[Precision, int, int]] = {  # precision, seed of the start, seed of order and masks
    "fp32": ("fp32", 0, 0),
    "bf16": ("bf16", 0, 0),
    "fp32, other order": ("fp32", 0, 1),
    "fp32, other start": ("fp32", 1, 0),
}


def curve(precision: Precision, start: int, order: int, steps: int) -> dict[str, Any]:
    """Loss and energy of every update, the dtypes of what is kept, and the seconds."""
    torch.manual_seed(start)
    config = PretrainConfig(steps=steps, batch=8, lr=1e-3, log_every=1, save_every=steps, predictor_width=32)
    phase = build_phase(build_encoder(EncoderConfig(dim=32, depth=2, heads=2)), config, order)
    engine = make_machine("cpu", "auto", precision).engine(phase, config)
    clips = MemoryClips(moving_clips(256, 0, frames=8, size=32).video)
    losses: list[float] = []
    update = engine.update

    def noted(*args: Any, **words: Any) -> Any:
        output, sound = update(*args, **words)
        losses.append(output.loss.item() if sound else float("nan"))
        return output, sound

    engine.update = noted  # type: ignore[method-assign]
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit(engine, len(clips), clips.batch, fit_settings(config, order), Path(folder), name=f"precision: {precision}")
    kept = {**engine.model_state(), **engine.optimizer_state()}.values()
    dtypes = sorted({str(v.dtype) for v in kept if v.is_floating_point()})
    return {"loss": losses, "kept_in": dtypes, "seconds": time.perf_counter() - begun}


def smoothed(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unfold(0, WINDOW, 1).mean(1)


def distances(a: list[float], b: list[float]) -> dict[str, float]:
    """Relative distances of two curves: of their smoothed forms in the mean and at most, and of the raw updates."""
    x, y = smoothed(a), smoothed(b)
    apart = (x - y).abs() / x
    first, second = torch.tensor(a), torch.tensor(b)
    raw = (first - second).abs() / first
    return {
        "mean": apart.mean().item(),
        "most": apart.max().item(),
        "last": apart[-1].item(),
        "first_30_updates": raw[:30].max().item(),
    }


def page(found: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {100 * d['mean']:.2f} | {100 * d['most']:.2f} | {100 * d['last']:.2f} | "
        f"{100 * d['first_30_updates']:.2f} |"
        for name, d in found["distance_from_fp32"].items()
    )
    at = [i for i in (0, 9, 29, 99, 199, 299, 399) if i < found["steps"]]
    curves = "\n".join(
        "| " + " | ".join([name, *(f"{run['loss'][i]:.4f}" for i in at), f"{run['seconds']:.0f}"]) + " |"
        for name, run in found["runs"].items()
    )
    return f"""# bf16 autocast against fp32

`python bench/precision.py`: {found["steps"]} updates of pretraining a small encoder on generated clips. Weights, the
moving average and the optimizer's state are kept in {", ".join(found["runs"]["bf16"]["kept_in"])} in both. Distance of
a run's loss from fp32's in %, of curves smoothed over {WINDOW} updates; the last column is the largest of the first 30
updates, each by itself.

| run | mean | most | at the end | any of the first 30 |
|---|---|---|---|---|
{rows}

Loss by update:

| run | {" | ".join(str(i + 1) for i in at)} | seconds |
|---|{"---|" * (len(at) + 1)}
{curves}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    runs = {name: curve(*how, args.steps) for name, how in RUNS.items()}
    apart = {name: distances(runs["fp32"]["loss"], run["loss"]) for name, run in runs.items() if name != "fp32"}
    found = {"run": run_info("bench/precision.py"), "steps": args.steps, "distance_from_fp32": apart, "runs": runs}
    write_json(args.out, found)
    write_text(args.out.with_suffix(".md"), page(found))
    say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
