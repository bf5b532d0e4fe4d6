"""Resize, crop and normalise against PIL and arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image

from polyspace.data.transforms import crop_at, normalize, prepare, random_crop, resize, resized_shape
from polyspace.utils.plan import Plan

PLAN = Plan(4, 12, (10, 10), (0.4, 0.5, 0.6), (0.2, 0.25, 0.5))


@pytest.mark.parametrize(("mode", "pil"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("shape", [(16, 20), (60, 70)])
def test_resize_is_within_a_level_of_pil(mode, pil, shape):
    frame = np.random.default_rng(0).integers(0, 255, (33, 47, 3), dtype=np.uint8)
    ours = resize(torch.from_numpy(frame)[None], shape, mode)[0].numpy().astype(int)
    theirs = np.asarray(Image.fromarray(frame).resize(shape[::-1], pil)).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_the_short_side_rules():
    assert resized_shape(240, 320, 224) == (224, 298)
    assert resized_shape(320, 240, 224) == (298, 224)
    assert resized_shape(100, 100, 7) == (7, 7)
    assert resized_shape(240, 320, (5, 9)) == (5, 9)


def test_crops_lie_in_the_middle_and_along_the_long_side():
    video = torch.arange(8, dtype=torch.uint8).view(1, 1, 8, 1).expand(2, 4, 8, 3)
    assert crop_at(video, (4, 4))[0, 0, :, 0].tolist() == [2, 3, 4, 5]
    assert crop_at(video, (4, 4), 0.0)[0, 0, :, 0].tolist() == [0, 1, 2, 3]
    assert crop_at(video, (4, 4), 1.0)[0, 0, :, 0].tolist() == [4, 5, 6, 7]
    padded = crop_at(video, (6, 10))
    assert padded.shape == (2, 6, 10, 3) and padded[0, 0].sum() == 0


def test_normalisation_is_the_documented_arithmetic():
    video = torch.randint(0, 256, (3, 2, 2, 3), dtype=torch.uint8)
    mean, std = torch.tensor(PLAN.mean), torch.tensor(PLAN.std)
    torch.testing.assert_close(normalize(video, PLAN), (video / 255 - mean) / std)
    vivit = Plan(4, 12, (10, 10), (0.0,) * 3, (1.0,) * 3, scale=1 / 127.5, offset=-1.0)
    torch.testing.assert_close(normalize(video, vivit), video / 127.5 - 1)
    assert vivit.range() == pytest.approx((-1, 1))


def test_views_are_stacked_crops():
    video = torch.randint(0, 256, (4, 24, 40, 3), dtype=torch.uint8)
    one, three = prepare(video, PLAN), prepare(video, PLAN, crops=3)
    assert one.shape == (1, 4, 10, 10, 3) and three.shape == (3, 4, 10, 10, 3)
    assert torch.equal(three[1], one[0]) and not torch.equal(three[0], three[2])


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (8, 90), (1, 1)])
def test_a_random_crop_is_one_window_of_every_frame(height, width):
    rows, columns = torch.arange(height), torch.arange(width)
    frame = torch.stack(torch.broadcast_tensors(rows[:, None], columns, torch.tensor(7)), -1)
    video = frame.to(torch.uint8).expand(3, -1, -1, -1)
    shares = []
    for seed in range(20):
        crop = random_crop(video, (6, 6), torch.Generator().manual_seed(seed))
        assert crop.shape == (3, 6, 6, 3) and torch.equal(crop[0], crop[2])
        high, wide = (int(crop[0, ..., c].max()) - int(crop[0, ..., c].min()) + 1 for c in (0, 1))
        shares.append(high * wide / (height * width))
    if min(height, width) > 8:
        assert min(shares) > 0.15 and max(shares) > 0.5 and len(set(shares)) > 10
