"""How close featurize comes to its floor, and to the script that a practitioner would write.

    python bench/featurize.py --out docs/results/featurize.json

Generated clips (real files), the package's small backbones. Measured in one run, start-up excluded:
  floor       single-thread CPU seconds of decode + preprocessing + forwards, measured alone in one process, over cores
  featurize   wall seconds of the command's working loop with one worker a core
  plain       a loop per model with its own decoding (PyAV, whole clip) and transformers, torch's own threads
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from polyspace.data import build_dataset
from polyspace.data.extract import BatchDataset, Views
from polyspace.data.feature_store import StoreWriter
from polyspace.data.featurize import FeaturizeConfig, featurize, forward_of, open_source, store_settings
from polyspace.data.sampling import Sampling, segment_indices
from polyspace.data.synthetic import SyntheticConfig, generate
from polyspace.data.transforms import prepare
from polyspace.train.embedded.assets import assets
from polyspace.utils.checkpoint_io import write_json
from polyspace.utils.log import quiet_libraries, table

TEACHERS = ["videomae", "timesformer", "vivit"]


def configure(root: Path, out: Path, batch: int) -> FeaturizeConfig:
    places = [f"{name}={assets() / name}" for name in ("vjepa2", *TEACHERS)]
    return FeaturizeConfig(
        dataset="hmdb51",
        root=root,
        out=out,
        teachers=TEACHERS,
        checkpoint=places,
        batch=batch,
        workers=os.cpu_count() or 1,
    )


def floor_seconds(config: FeaturizeConfig) -> dict[str, float]:
    """Single-thread CPU seconds of each part over all clips, nothing else running."""
    torch.set_num_threads(1)
    data, cards = open_source(config)
    writer = StoreWriter(config.out / "x.json", store_settings(config, data, cards), config.batch)
    plans = {n: c.plan for n, c in cards.items()}
    dataset = BatchDataset([r.path for r in data.records], plans, Views(Sampling()), 16, writer, None)
    forwards = {n: forward_of(c.load(), torch.device("cpu"), False) for n, c in cards.items()}
    seconds = {"decode": 0.0, "prepare": 0.0, "forward": 0.0}
    with torch.inference_mode():
        for index in range(len(dataset)):
            batch = dataset.decode(index)
            if index == 0:  # warm up kernels
                for name, video in batch.inputs.items():
                    forwards[name](video)
            seconds["decode"] += batch.seconds["decode"]
            seconds["prepare"] += batch.seconds["prepare"]
            start = time.thread_time()
            for name, video in batch.inputs.items():
                forwards[name](video)
            seconds["forward"] += time.thread_time() - start
    return seconds


@torch.inference_mode()
def plain_seconds(config: FeaturizeConfig) -> float:
    """Wall seconds of the usual script: for each model and clip decode everything, sample, preprocess, forward."""
    import av

    torch.set_num_threads(os.cpu_count() or 1)
    data, cards = open_source(config)
    models = {n: c.load() for n, c in cards.items()}
    start = time.perf_counter()
    for name, model in models.items():
        for record in data.records:
            with av.open(str(record.path)) as file:
                frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
            plan = cards[name].plan
            picks = segment_indices(len(frames), plan.frames)
            clip = torch.stack([torch.from_numpy(frames[i]) for i in picks])
            _ = model(prepare(clip, plan)).pooled
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    quiet_libraries()
    work = Path(tempfile.mkdtemp(prefix="bench_featurize_"))
    try:
        root = work / "data"
        generate(
            SyntheticConfig(layout="hmdb51", out=root, clips=args.clips, classes=8, height=120, width=160, frames=41)
        )
        clips = len(build_dataset("hmdb51", root, "train").records)
        rows = []
        for repeat in range(args.repeats):
            config = configure(root, work / f"store{repeat}", args.batch)
            parts = floor_seconds(config)
            floor = sum(parts.values()) / (os.cpu_count() or 1)
            store = featurize(config)
            report = json.loads(store.path.with_name(f"{store.path.stem}.run.json").read_text())["report"]
            rows.append(
                {"floor_s": floor, "featurize_s": report["wall_seconds"], "plain_s": plain_seconds(config)} | parts
            )
        for row in rows:
            row["over_floor"] = row["featurize_s"] / row["floor_s"]
            row["plain_over_featurize"] = row["plain_s"] / row["featurize_s"]
        keys = [
            "floor_s",
            "featurize_s",
            "over_floor",
            "plain_s",
            "plain_over_featurize",
            "decode",
            "prepare",
            "forward",
        ]
        for line in table([[f"{row[k]:.3f}" for k in keys] for row in rows], keys):
            sys.stdout.write(line + "\n")
        machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "torch": torch.__version__}
        date = datetime.date.today().isoformat()
        result = {"command": "python " + " ".join(sys.argv), "clips": clips, "batch": args.batch, "runs": rows}
        write_json(args.out, result | {"machine": machine, "date": date})
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
