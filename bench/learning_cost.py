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
from typing import Any

import torch
from learning import GROUPS, build, clips, front_figure, publish, seconds_per_step
from learning_arms import Arm
from learning_measure import features, target_of
from learning_report import show
from learning_store import arm_folder, identity, result_file, save

from polyspace.data.clip_source import MemoryClips
from polyspace.data.moving import MovingClips
from polyspace.train.checkpoint import load_checkpoint
from polyspace.train.engine import PlainEngine
from polyspace.train.optim import build_adamw
from polyspace.utils.checkpoint_io import read_json, write_json
from polyspace.utils.log import say


def encode_ms(arm: Arm, folder: Path, video: MovingClips) -> float:
    """CPU time of a clip's encoding by the arm's last state."""
    phase = build(arm, 1, 0)
    if load_checkpoint(folder, PlainEngine(phase, build_adamw(phase, 1e-3, 0.0), torch.device("cpu"))) is None:
        raise SystemExit(f"{folder} holds no state; train the arm with bench/learning.py first")
    encoder = target_of(phase.eval())
    features(encoder, replace(video, video=video.video[:100], label=video.label[:100]))
    start = time.process_time()
    features(encoder, video)
    return 1e3 * (time.process_time() - start) / len(video.label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/learning"))
    parser.add_argument("--group", choices=GROUPS, default="front")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1200.0, help="as given to learning.py")
    parser.add_argument("--steps", type=int, help="as given to learning.py")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.only, args.jobs = None, 1
    torch.set_num_threads(1)
    seen = clips(args.work, "validation")
    pretrain = clips(args.work, "pretrain")
    source = MemoryClips(pretrain.video, pretrain.label)
    files: dict[tuple[str, int], dict[str, Any]] = {}
    for name, arm in GROUPS[args.group].items():
        for seed in range(min(args.seeds, arm.seeds)):
            file = result_file(args.work, name, identity(arm, args), seed)
            if file.is_file() and arm.pretrain is not None:
                files[name, seed] = read_json(file)
    spent: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in files}
    for _ in range(args.rounds):
        for name, seed in files:
            arm = GROUPS[args.group][name]
            encode = encode_ms(arm, arm_folder(args.work, name, identity(arm, args), seed), seen)
            train = 1e3 * seconds_per_step(arm, source, seed) / arm.pretrain_config(1).batch
            spent[name, seed].append((encode, train))
            say(f"{name} seed {seed}: {encode:.1f} ms to encode, {train:.1f} ms to train")
    for key, result in files.items():
        encode, train = (min(values) for values in zip(*spent[key], strict=True))
        save(args.work, result | {"encode_ms": encode, "train_ms": train, "clips_per_s": 1e3 / train})
    costs = {"command": " ".join(["python", *sys.argv]), "rounds": args.rounds}
    about = read_json(args.out) | {"arms": publish(args.group, {}, args)["arms"], "costs": costs}
    write_json(args.out, about)
    show(about["arms"])
    if args.group == "front":
        say(f"-> {front_figure(about, args.out.with_suffix('.png'))}")


if __name__ == "__main__":
    main()
