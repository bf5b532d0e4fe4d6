"""What all spaces cost at real sizes: one student and converters, against running the teachers.

    python bench/cost.py --out docs/results/cost.json

Architectures at their published sizes with random weights (which cost the same), 16 frames of 224² for our own
students, each other backbone on its own plan. FLOPs are counted (2 a multiply-add, attention included); latency is the
median of calls on noise, where every cell changes and a chunk encoder has the most tokens it can have; `still` is one
frame repeated, where it has the fewest.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyspace.models.backbones.hf import default_card
from polyspace.models.spaces.converters import ConverterBank, LinearConverter, ResidualMLP
from polyspace.models.vjepa.vit import HNetViT
from polyspace.train.alignment.cost import timed_rounds
from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.flops import forward_flops, num_params
from polyspace.utils.log import say
from polyspace.utils.misc import get_device
from polyspace.utils.run_info import run_info
from polyspace.utils.standardise import Standardiser

TEACHERS = ("videomae", "timesformer", "vivit")
SHAPE = (16, 224, 224, 3)
HIDDEN = 512  # of the converters' networks: train-converter's default


@dataclass(frozen=True)
class Arm:
    """A way to get features: FLOPs a clip, parameters, and what makes a call on so many clips."""

    flops: int
    params: int
    call: Callable[[int], Callable[[], Any]]


def published(name: str, device: torch.device) -> Arm:
    card = default_card(name, 16)
    model = card.skeleton().to(device).eval()
    return Arm(
        card.flops(), card.params(), lambda batch: partial(model, torch.randn(batch, *card.input_shape).to(device))
    )


def chunked(model: HNetViT, budget: int | None, still: bool, device: torch.device) -> Arm:
    def clips(batch: int) -> Tensor:
        video = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
        return video[:, :1].expand_as(video).contiguous() if still else video

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        flops = forward_flops(model, clips(1), num_chunks=budget)
    return Arm(flops, num_params(model), lambda batch: partial(model, clips(batch), num_chunks=budget))


def converters(dim: int, device: torch.device) -> Arm:
    """Three residual networks into spaces of 768."""

    def one() -> nn.Module:
        linear = LinearConverter(torch.zeros(dim, 768), torch.zeros(768))
        unit = Standardiser(torch.zeros(768), torch.eye(768), torch.eye(768))
        return ResidualMLP(linear, HIDDEN, torch.zeros(dim), torch.ones(dim), unit)

    bank = ConverterBank({name: one() for name in TEACHERS}).to(device).eval()
    params = num_params(bank) + sum(b.numel() for b in bank.buffers())
    flops = forward_flops(bank, torch.zeros(1, dim, device=device))
    return Arm(flops, params, lambda batch: partial(bank, torch.zeros(batch, dim, device=device)))


def arms(device: torch.device, budgets: list[int]) -> dict[str, Arm]:
    found = {f"teacher {name}": published(name, device) for name in TEACHERS}
    found["student vjepa2 ViT-L"] = published("vjepa2", device)
    for preset in ("base", "large"):
        torch.manual_seed(0)
        model = HNetViT.from_preset(preset).to(device).eval()
        found[f"student hnet {preset}, most chunks"] = chunked(model, None, False, device)
        found |= {f"student hnet {preset}, {n} chunks": chunked(model, n, False, device) for n in budgets}
        found[f"student hnet {preset}, still"] = chunked(model, None, True, device)
    found["three converters of 768 dims"] = converters(768, device)
    return found


def measure(found: dict[str, Arm], batch: int, seconds: float, device: torch.device) -> dict[str, float]:
    """Median seconds of a call; the big ones are called once after one to warm up."""
    out = {}
    for name, arm in found.items():
        run = arm.call(batch)
        with torch.inference_mode():
            run()
            out[name] = median(timed_rounds({name: run}, device, seconds, least=1)[name])
        say(f"batch {batch}: {name}: {out[name] * 1e3:.0f} ms")
    return out


def page(rows: dict[str, dict[str, Any]], batches: list[int], about: str) -> str:
    """The table as Markdown; clips a second are of the largest batch."""
    lines = ["# What all spaces cost", "", f"`python bench/cost.py`, {about}.", ""]
    heads = [f"ms, batch {b}" for b in batches]
    lines += [
        "| | GFLOP a clip | M parameters | " + " | ".join(heads) + " | clips/s |",
        "|---|---|---|" + "---|" * (len(batches) + 1),
    ]
    for name, row in rows.items():
        times = [f"{row['seconds'][str(b)] * 1e3:.0f}" for b in batches]
        rate = batches[-1] / row["seconds"][str(batches[-1])]
        lines.append(
            f"| {name} | {row['flops'] / 1e9:.1f} | {row['params'] / 1e6:.0f} | "
            + " | ".join(times)
            + f" | {rate:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--budgets", type=int, nargs="+", default=[196, 96, 48])
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing for each row and batch size")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = get_device(args.device)
    found = arms(device, args.budgets)
    times = {batch: measure(found, batch, args.seconds, device) for batch in args.batches}
    rows: dict[str, dict[str, Any]] = {
        name: {"flops": arm.flops, "params": arm.params, "seconds": {str(b): times[b][name] for b in args.batches}}
        for name, arm in found.items()
    }
    teachers = [f"teacher {name}" for name in TEACHERS]
    for title, parts in (
        ("all three teachers", teachers),
        (
            "student hnet base, most chunks + converters",
            ["student hnet base, most chunks", "three converters of 768 dims"],
        ),
    ):
        seconds = {str(b): math.fsum(times[b][p] for p in parts) for b in args.batches}
        rows[title] = {key: sum(rows[p][key] for p in parts) for key in ("flops", "params")} | {"seconds": seconds}
    about = f"{device}, fp32, {torch.get_num_threads()} threads"
    write_json(args.out, {"run": run_info("bench/cost.py"), "device": about, "rows": rows})
    write_text(args.out.with_suffix(".md"), page(rows, args.batches, about))
    say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
