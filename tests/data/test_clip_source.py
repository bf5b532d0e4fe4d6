"""Training clips from files: the same bits whoever decodes them."""

import numpy as np
import pytest
import torch

from polyspace.data.clip_source import FileClips
from polyspace.data.records import ClipRecord
from polyspace.data.render import orbit_clip
from polyspace.data.sampling import Sampling
from polyspace.data.video_writer import write_video
from polyspace.utils.plan import Plan

PLAN = Plan(frames=4, resize=24, crop=(24, 24), mean=(0.45,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("clips"), []
    for number, ending in enumerate((".mp4", ".avi", ".webm", ".mp4", ".avi")):
        path = folder / f"{number}{ending}"
        write_video(path, orbit_clip(np.random.default_rng(number), 1, 17, 32, 40, 0.0).video)
        out.append(ClipRecord(path.stem, path, number % 2, path.stem, f"clip {number}"))
    (folder / "3.mp4").write_bytes(b"no video")
    return out


def batches(records, workers: int, seed: int | None):
    source = FileClips(records, PLAN, Sampling(), workers, max_failed=0.5, seed=seed)
    try:
        for visits in (torch.tensor([0, 3, 2]), torch.tensor([4, 1, 5, 5]), torch.tensor([13, 7])):
            source.prefetch((visits + 1) % 15)
            yield source.batch(visits)
    finally:
        source.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bits_of_a_batch_do_not_depend_on_the_workers(records, workers):
    for here, there in zip(batches(records, 0, 3), batches(records, workers, 3), strict=True):
        assert torch.equal(here.video, there.video) and torch.equal(here.label, there.label)
        assert here.text == there.text and here.rows == there.rows


def test_another_visit_of_a_clip_is_another_look_at_it_and_without_a_seed_the_same(records):
    for seed, alike in ((3, False), (None, True)):
        source = FileClips(records, PLAN, Sampling(), seed=seed)
        assert torch.equal(source.batch(torch.tensor([0])).video, source.batch(torch.tensor([5])).video) == alike
