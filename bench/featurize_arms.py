"""The arms of bench/featurize.py: our command, its floor, and the plain script."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from real_clips import REAL, videos_in

from polyspace.data.extract import BatchDataset, Views
from polyspace.data.feature_store import FeatureStore
from polyspace.data.featurize import FeaturizeConfig, featurize, forward_of, open_source, store_settings
from polyspace.data.sampling import Sampling, segment_indices
from polyspace.data.store_writer import StoreWriter
from polyspace.data.synthetic import SyntheticConfig, generate
from polyspace.data.transforms import prepare
from polyspace.models.backbones.hf import FAMILIES, default_card
from polyspace.utils.checkpoint_io import read_json

TEACHERS = ["videomae", "timesformer", "vivit"]


@dataclass(frozen=True)
class Job:
    """A folder of clips, and where each backbone's weights lie."""

    root: Path
    places: dict[str, Path]
    batch: int

    def config(self, out: Path, precision: str) -> FeaturizeConfig:
        return FeaturizeConfig(
            dataset="videofolder",
            root=self.root,
            out=out,
            teachers=TEACHERS,
            checkpoint=[f"{name}={place}" for name, place in self.places.items()],
            batch=self.batch,
            workers=os.cpu_count() or 1,
            precision=precision,
        )


def write_clips(root: Path, count: int) -> int:
    """`count` clips in classes of a video folder: generated ones of 41 frames of 120×160, every eighth a real one
    (up to 303 frames of 340×256) where there are some."""
    made = root.with_name(f"{root.name}_made")
    generate(SyntheticConfig(layout="hmdb51", out=made, clips=count, classes=min(8, count), height=120, width=160))
    generated = videos_in(made)[:count]
    real = sorted(p for source in ("hmdb51", "clips", "ssv2") for p in videos_in(REAL / source))
    for index, path in enumerate(generated):
        if real and index % 8 == 0:
            path = real[index // 8 % len(real)]
        place = root / "train" / f"class_{index % 4}" / f"{index:05d}{path.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    shutil.rmtree(made)
    return len(generated)


def full_size_weights(folder: Path) -> dict[str, Path]:
    """Checkpoints of published size with random weights."""
    places = {}
    for name in ("vjepa2", *TEACHERS):
        torch.manual_seed(0)
        model: Any = default_card(name, 16).skeleton()
        places[name] = folder / name
        model.model.save_pretrained(places[name])
    return places


def floor_parts(job: Job, precision: str) -> dict[str, float]:
    """Single-thread CPU seconds of each part over all clips, nothing else running."""
    torch.set_num_threads(1)
    config = job.config(job.root.with_name("floor"), precision)
    data, cards = open_source(config)
    writer = StoreWriter(config.out / "x.json", store_settings(config, data, cards), config.batch)
    plans = {n: c.plan for n, c in cards.items()}
    dataset = BatchDataset([r.path for r in data.records], plans, Views(Sampling()), 16, writer, None)
    forwards = {n: forward_of(c, torch.device("cpu"), False, precision) for n, c in cards.items()}
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


def featurize_seconds(job: Job, out: Path, precision: str) -> tuple[float, FeatureStore]:
    store = featurize(job.config(out, precision))
    return read_json(store.path.with_name(f"{store.path.stem}.run.json"))["report"]["wall_seconds"], store


@torch.inference_mode()
def plain_seconds(job: Job, precision: str) -> float:
    """Wall seconds of the usual script: for each model and clip decode everything, sample, preprocess, forward."""
    import av
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    data, cards = open_source(job.config(job.root.with_name("plain"), precision))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    seconds = 0.0
    for name, place in job.places.items():
        family = FAMILIES[name]
        model = getattr(transformers, family.model_class).from_pretrained(place, dtype=dtype).eval()
        more = {"skip_predictor": True} if name == "vjepa2" else {}
        plan = cards[name].plan
        start = time.perf_counter()
        for record in data.records:
            with av.open(str(record.path)) as file:
                frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
            picks = segment_indices(len(frames), plan.frames)
            clip = prepare(torch.stack([torch.from_numpy(frames[i]) for i in picks]), plan)
            pixels = clip.permute(0, 1, 4, 2, 3).to(dtype)
            _ = model(**{family.input_name: pixels}, **more).last_hidden_state
        seconds += time.perf_counter() - start
    return seconds
