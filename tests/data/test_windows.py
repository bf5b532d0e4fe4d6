"""Windows of a long clip: every frame lies in one, and what is taken of it is what training would take."""

import numpy as np
import pytest
import torch

from polyspace.data.sampling import Sampling, segment_indices
from polyspace.data.transforms import prepare
from polyspace.data.video import read_frames
from polyspace.data.video_writer import write_video
from polyspace.data.windows import clip_windows, window_span
from polyspace.utils.plan import Plan

PLAN = Plan(4, 12, (10, 10), (0.4, 0.5, 0.6), (0.2, 0.25, 0.5))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "clip.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (30, 16, 24, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize(
    ("span", "start", "stop"), [(10, 0, None), (7, 0, None), (4, 3, 29), (2, 5, 8), (50, 13, None)]
)
def test_a_window_is_a_clip_of_its_own_and_the_last_one_repeats_its_last_frame(clip, span, start, stop):
    end = 30 if stop is None else stop
    windows = list(clip_windows(clip, PLAN, span, start, stop))
    assert [w.start for w in windows] == list(range(0, end - start, span)) and windows[-1].stop == end - start
    for window in windows:
        assert window.stop - window.start == span or window is windows[-1]
        picks = [min(start + window.start + i, end - 1) for i in segment_indices(span, 4)]
        assert torch.equal(window.clip, prepare(read_frames(clip, picks), PLAN)[0])


def test_the_span_has_the_rate_of_training():
    for how, frames, fps, span in (
        ("stride:4", 999, 30, 64),
        ("stride:0.01", 9, 30, 1),
        ("fps:8", 999, 30, 60),
        ("segments", 17, 12, 17),
        ("segments", 7200, 12, 48),
        ("segments", 303, 30, 101),
        ("segments", 5, 1, 5),
        ("segments", 1, 30, 1),
        ("index:0,3", 50, 12, 25),
    ):
        assert window_span(Sampling.parse(how), 16, frames, fps) == span, how
