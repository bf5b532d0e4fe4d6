"""Open-loop prediction on recorded robot episodes, beside copying the last frame.

    python bench/open_loop.py --root ../shared/data/droid/droid_subset --encoder outputs/pretrain \\
        --out docs/results/open_loop.json

For every stride and seed the action phase learns from the episodes that are not held out and predicts the held-out
ones' latents over the horizon; which ones are held out the seed decides. The same is done for generated episodes, which
tell what the same number of updates can learn where there is enough to learn from.
"""

import argparse
from pathlib import Path
from typing import Any

from polyspace.config import validate
from polyspace.train.run import RunConfig, run
from polyspace.utils.checkpoint_io import write_json, write_text
from polyspace.utils.log import say
from polyspace.utils.run_info import run_info

KEYS = ("gain", "gain_low", "gain_high", "gain_one_step", "gain_by_step", "gain_other_actions", "keypoint_travel")


def measure(args: argparse.Namespace, seed: int, episodes: dict[str, Any], name: str) -> dict[str, Any]:
    action = {"steps": args.steps, "eval_every": 0, "size": args.size, "episodes": episodes}
    work = args.work / f"{name}_seed_{seed}"
    values = {"work_dir": work, "sequence": "action", "seed": seed, "init_from": args.encoder, "action": action}
    found = run(validate(RunConfig, values))["phases"]["action"]
    held = sorted({held.rpartition("/")[0] or held for held in found["data"]["held_out_names"]})
    return {key: found["last"][key] for key in KEYS if key in found["last"]} | {
        "held_out": held,
        "clips": found["data"]["clips"],
    }


def page(rows: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    """The table as Markdown."""
    lines = [
        "# Open-loop prediction on recorded episodes",
        "",
        f"`python bench/open_loop.py`, {args.steps} updates, {args.size} pixels a side. Gain: share of the energy of",
        "copying the last frame that the prediction saves over five steps (below 0: it is farther off), with a 95 %",
        "interval over held-out episodes where there are several. Other actions: told those of another held-out one.",
        "Travel: share of the squared sums of actions that keypoints tell. Learned from: recordings, one a camera.",
        "",
        "| episodes | held out | learned from | gain | one step | five steps on | other actions | travel told |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        for row in found:
            held = ", ".join(row["held_out"]) if len(row["held_out"]) < 4 else f"{len(row['held_out'])} and more"
            gain = f"{row['gain']:+.1%}"
            if "gain_low" in row:
                gain += f" [{row['gain_low']:+.1%}, {row['gain_high']:+.1%}]"
            steps = f"{row['gain_one_step']:+.1%} | {row['gain_by_step'][-1]:+.1%}"
            other = f"{row['gain_other_actions']:+.1%}" if "gain_other_actions" in row else "–"
            rest = f"{other} | {row['keypoint_travel']:.2f}"
            lines.append(f"| {name} | {held} | {row['clips']} | {gain} | {steps} | {rest} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of recorded episodes")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a pretrained encoder, or of a run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/open_loop"))
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="updates")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    args = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    for stride in args.strides:
        episodes = {"source": "recorded", "root": args.root, "stride": stride}
        name = f"recorded, every {stride}" if stride > 1 else "recorded"
        rows[name] = [measure(args, seed, episodes, f"stride_{stride}") for seed in range(args.seeds)]
    rows["generated"] = [measure(args, 0, {"source": "generated"}, "generated")]
    write_json(args.out, {"run": run_info("bench/open_loop.py"), "steps": args.steps, "size": args.size, "rows": rows})
    write_text(args.out.with_suffix(".md"), page(rows, args))
    say(f"-> {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
