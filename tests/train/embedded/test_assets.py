"""The small backbones that come with the package: what they learned, how unlike they are, how large."""

import itertools
import json

import pytest
import torch

from polyspace.models.backbones import describe_all
from polyspace.train.embedded.assets import STUDENTS, assets
from polyspace.train.embedded.clips import draw_clips, make_batch
from polyspace.train.embedded.make import TASKS
from polyspace.utils.cka import linear_cka

NAMES = list(TASKS)
MAIN = {  # what each was trained for; the constant's or the random network's score, whichever is higher, is its floor
    "hnet_vjepa": ("skill", "turns_probe", "speed_probe"),
    "vjepa2": ("skill", "turns_probe", "speed_probe"),
    "videomae": ("explained_variance",),
    "timesformer": ("look_accuracy",),
    "vivit": ("turns_accuracy",),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_ten_points_above_its_random_init_on_what_it_was_trained_for(name):
    about = json.loads((assets() / name / "about.json").read_text())
    for key in MAIN[name]:
        assert about["held_out"][key] >= max(about["random_init"][key], 0.0) + 0.1, key


@pytest.fixture(scope="module")
def spaces():
    clips = draw_clips(128, 7)  # of another seed than training and its held-out part
    cards = describe_all("hnet_vjepa", NAMES[1:], 16, [f"{n}={assets() / n}" for n in NAMES], strict=True)
    with torch.inference_mode():
        return {n: c.load()(make_batch(clips, torch.arange(128), c.plan).video).pooled for n, c in cards.items()}


def test_spaces_of_teachers_are_unlike_each_other_and_the_students(spaces):
    pairs = [pair for pair in itertools.combinations(NAMES, 2) if set(pair) != set(STUDENTS)]  # these learn the same
    for a, b in pairs:
        assert linear_cka(spaces[a], spaces[b], debiased=True) < 0.9, (a, b)
        assert linear_cka(spaces[a], spaces[a], debiased=True) == pytest.approx(1)


def test_none_has_collapsed(spaces):
    for name, x in spaces.items():
        x = x.double()
        centred = torch.linalg.svdvals(x - x.mean(0)).square()
        assert centred.sum().square() / centred.square().sum() > 3, name  # participation ratio


def test_all_of_them_take_at_most_eight_megabytes():
    assert sum(f.stat().st_size for f in assets().rglob("*") if f.is_file()) <= 8e6
