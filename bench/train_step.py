"""One pretraining update: H-Net V-JEPA against the tubelet baseline and transformers' V-JEPA 2 at the same ViT.

    python bench/train_step.py --out docs/results/train_step.json

Each arm and shape in a process of its own, on the same generated clips and masks: seconds (the median of updates after
two to warm up), FLOPs counted, their rate as a share of the best matrix product of the same process, peak RSS above
that of a process that has only imported; then how time and memory grow with frames and with pixels, where the time of
an update goes, and ViT-B's blocks alone. `--ranks 1 2` measures one update on several ranks too.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from train_step_arms import ARMS, blocks, clips, counting, matmul_peak, ours, theirs
from train_step_ranks import ranks_page, ranks_rows

from polyspace.utils.checkpoint_io import read_json, write_json, write_text
from polyspace.utils.log import quiet_libraries, say, table
from polyspace.utils.run_info import run_info

WARM = 2
SHAPES = {  # preset -> (clips, frames, pixels a side)
    "small": [(4, 8, 112), (4, 16, 112), (4, 32, 112), (4, 16, 160), (4, 16, 224)],
    "base": [(2, 16, 224)],
}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(_: int, arch: str, preset: str, shape: tuple[int, int, int], updates: int, threads: int, out: str) -> None:
    quiet_libraries()
    torch.set_num_threads(threads)
    peak = matmul_peak()
    video = clips(*shape)
    before = peak_mib()
    make = {"transformers": lambda: theirs(preset, video), "blocks": lambda: blocks(video)}
    update, module, parts = make.get(arch, lambda: ours(arch, preset, video))()
    for number in range(WARM):
        update(number)
    parts.clear()
    seconds = []
    for number in range(WARM, WARM + updates):
        start = time.perf_counter()
        update(number)
        seconds.append(time.perf_counter() - start)
    parts = {title: value / updates for title, value in parts.items()}
    memory = peak_mib() - before
    with counting() as counter:
        update(WARM + updates - 1)
    found = {"s": statistics.median(seconds), "mean_s": statistics.mean(seconds), "peak_mib": memory}
    found |= {"flops": counter.get_total_flops(), "matmul_flops": peak, "parts": parts}
    write_json(Path(out), found | {"params": sum(p.numel() for p in module.parameters() if p.requires_grad)})


def measure(arch: str, preset: str, shape: tuple[int, int, int], args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own."""
    out = args.out.with_suffix(".part")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    mp.spawn(_measure, (arch, preset, shape, args.updates, args.threads, str(out)), nprocs=1)
    found = read_json(out)
    out.unlink()
    row = {"arch": arch, "preset": preset, "clips": shape[0], "frames": shape[1], "size": shape[2], **found}
    row |= {"clips_a_second": shape[0] / row["s"], "share": row["flops"] / row["s"] / row["matmul_flops"]}
    say(f"{arch} {preset} {shape}: {row['s']:.2f} s, {row['share']:.0%} of the peak, {row['peak_mib']:.0f} MiB")
    return row


def page(rows: list[dict[str, Any]], threads: int) -> str:
    about = (
        f"`python bench/train_step.py`: fp32, {threads} threads, cells of 2 × 16 × 16, predictor of half the width and "
        "4 blocks, the same space tubes hidden. Share: counted FLOP/s of the best matrix product of the "
        "same process."
    )
    heads = ["ViT", "clips", "arm", "s", "clips a second", "GFLOP", "share", "MiB", "of transformers' time"]
    body = []
    by_shape = {(r["preset"], r["frames"], r["size"]): r["s"] for r in rows if r["arch"] == "transformers"}
    for r in rows:
        base = by_shape.get((r["preset"], r["frames"], r["size"]))
        body.append(
            [r["preset"], f"{r['clips']} × {r['frames']} × {r['size']}²", r["arch"], f"{r['s']:.2f}",
             f"{r['clips_a_second']:.2f}", f"{r['flops'] / 1e9:.0f}", f"{r['share']:.0%}", f"{r['peak_mib']:.0f}",
             f"{r['s'] / base:.2f}" if base and r["arch"] != "blocks" else "–"]
        )  # fmt: skip
    lines = ["# One pretraining update", "", about, "", *table(body, heads)]
    for r in rows:
        if not r["parts"] or (r["preset"], r["frames"], r["size"]) not in (("small", 16, 112), ("base", 16, 224)):
            continue
        rest = r["mean_s"] - sum(r["parts"].values())
        parts = [*sorted(r["parts"].items(), key=lambda item: -item[1]), ("all else", rest)]
        body = [[title, f"{s * 1e3:.0f}", f"{s / r['mean_s']:.0%}"] for title, s in parts]
        shape = f"{r['clips']} clips of {r['frames']} frames of {r['size']}²"
        lines += ["", f"## Where the time goes: {r['arch']} {r['preset']}, {shape}", ""]
        lines += table(body, ["part", "ms", "share"])
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--archs", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--presets", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ranks", type=int, nargs="+", default=[], help="also so many ranks, small ViT")
    args = parser.parse_args()
    rows = [measure("blocks", "base", (2, 16, 224), args)] if "base" in args.presets else []
    for preset in args.presets:
        rows += [measure(arch, preset, shape, args) for shape in SHAPES[preset] for arch in args.archs]
    text = page(rows, args.threads)
    found: dict[str, Any] = {"run": run_info("bench/train_step.py"), "threads": args.threads, "rows": rows}
    if args.ranks:
        found["ranks"] = ranks_rows(args.ranks, args.threads)
        text += "\n" + ranks_page(found["ranks"], args.threads)
    write_json(args.out, found)
    write_text(args.out.with_suffix(".md"), text)
    say(text)


if __name__ == "__main__":
    main()
