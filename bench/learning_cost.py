"""What the arms of a finished group cost, measured again one after another in turns, with nothing else at work.

    python bench/learning_cost.py --group front --steps 4000 --seeds 1 --out docs/results/learning_front.json

Arms of bench/learning.py train side by side and disturb one another; here each is timed on one thread, in `--rounds`
turns, and the least CPU time of a clip replaces what the results said: encoding with the trained encoder, and training.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from learning import FULL, GROUPS, clips, seconds_per_step, trained
from learning_arms import Arm
from learning_figure import front_figure
from learning_measure import features
from learning_report import collect, show
from learning_store import finished, identity, result_file, save

from polyspace.data.clip_source import MemoryClips
from polyspace.data.moving import MovingClips
from polyspace.models.vjepa.vit import HNetViT, TubeletViT
from polyspace.utils.checkpoint_io import read_json, write_json
from polyspace.utils.log import say


def encode_ms(encoder: HNetViT | TubeletViT, video: MovingClips) -> float:
    """CPU time of a clip."""
    features(encoder, replace(video, video=video.video[:100], label=video.label[:100]))
    start = time.process_time()
    features(encoder, video)
    return 1e3 * (time.process_time() - start) / len(video.label)


def measured(name: str, arm: Arm, seed: int, args: argparse.Namespace) -> tuple[float, float]:
    """ms of a clip's encoding by the arm's last state, and of training on one."""
    encoder = trained(name, arm, seed, args)
    if encoder is None:
        raise SystemExit(f"{args.work} holds no state of {name} seed {seed}; train it with bench/learning.py first")
    encode = encode_ms(encoder, clips(args.work, "validation"))
    pretrain = clips(args.work, "pretrain")
    train = seconds_per_step(arm, MemoryClips(pretrain.video, pretrain.label), seed)
    return encode, 1e3 * train / arm.pretrain_config(1).batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/learning"))
    parser.add_argument("--group", choices=[g for g in GROUPS if g not in FULL], default="front")
    parser.add_argument("--seeds", type=int, default=3, help="so many are timed; costs of others are left out")
    parser.add_argument("--seconds", type=float, default=1200.0, help="as given to learning.py")
    parser.add_argument("--steps", type=int, help="as given to learning.py")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    arms, timed = GROUPS[args.group], args.seeds
    args.seeds = max(arm.seeds for arm in arms.values())
    spent: dict[tuple[str, int], list[tuple[float, float]]] = {
        (name, result["seed"]): [] for name, results in finished(arms, args).items() for result in results
    }
    for _ in range(args.rounds):
        for (name, seed), costs in spent.items():
            if seed < timed:
                costs.append(measured(name, arms[name], seed, args))
                say(f"{name} seed {seed}: {costs[-1][0]:.1f} ms to encode, {costs[-1][1]:.1f} ms to train")
    for (name, seed), costs in spent.items():
        result = read_json(result_file(args.work, name, identity(arms[name], args), seed))
        encode, train = (min(values) for values in zip(*costs, strict=True)) if costs else (None, None)
        save(args.work, result | {"encode_ms": encode, "train_ms": train, "clips_per_s": train and 1e3 / train})
    about = read_json(args.out) | {"arms": collect(finished(arms, args), ())}
    about |= {"costs": {"command": " ".join(["python", *sys.argv]), "rounds": args.rounds}}
    write_json(args.out, about)
    show(about["arms"])
    if args.group == "front":
        say(f"-> {front_figure(about, args.out.with_suffix('.png'))}")


if __name__ == "__main__":
    main()
