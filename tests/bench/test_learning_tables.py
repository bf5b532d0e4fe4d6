"""bench/learning.py's arithmetic: what its tables are made of."""

import argparse
import json

import learning
import pytest
import torch
from learning_arms import ABLATIONS, ARMS, EQUAL_STEPS, FRONT, SWEEP
from learning_figure import front
from learning_measure import agreement, fixed_blocks
from learning_page import page
from learning_report import MEASURES, collect, summary
from learning_store import finished, identity, save, unpack

from polyspace.train.encoders import build_encoder
from polyspace.train.pretrain import build_phase


def results(name: str, values: list[float]) -> list[dict]:
    common = {"probe": 0.9, "tokens": 100.0, "flops_per_clip": 1e8, "shuffled": 0.17, "code": "a", "steps": 10}
    budgets = {"budget_tokens": [6, 12], "budget_linear": [0.5, 0.6], "spearman_motion": 0.7}
    return [{"name": name, "seed": s, "linear": v} | common | budgets for s, v in enumerate(values)]


@pytest.fixture
def about(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench/learning.py"])
    runs = {"hnet_vjepa": [0.9, 0.8, 1.0], "tubelet_vjepa": [0.8, 0.8, 0.8]}
    arms = collect({name: results(name, values) for name, values in runs.items()}, MEASURES)
    return summary(arms, 1200.0, None, 2)


def test_intervals_are_over_seeds_and_of_pairs(about):
    mean, low, high = about["intervals"]["hnet_vjepa"]
    half = 4.302653 * 0.1 / 3**0.5  # Student's t at 2 degrees of freedom, standard deviation 0.1
    assert (mean, low, high) == pytest.approx((0.9, 0.9 - half, 0.9 + half), abs=1e-4)
    assert about["intervals"]["hnet_vjepa - tubelet_vjepa"][0] == pytest.approx(0.1)


def test_every_arm_has_every_measure(about):
    for arm in about["arms"].values():
        assert set(MEASURES) <= set(arm) and arm["skill"] == [None] * 3


def test_the_page_holds_what_is_there(about, tmp_path):
    (tmp_path / "learning.json").write_text(json.dumps(about))
    (tmp_path / "learning_sweep.json").write_text(json.dumps(about))
    text = page(tmp_path)
    assert "| hnet_vjepa | 0.900 (0.900, 0.800, 1.000)" in text and "## Settings tried" in text
    assert "| hnet_vjepa | 0.500 (0.500, 0.500, 0.500) | 0.600" in text and "## At equal steps" not in text


def test_agreement_is_one_for_the_masks_themselves_and_near_zero_without_content():
    truth = torch.zeros(2, 216, 4, dtype=torch.uint8)
    truth[0, :40], truth[1, 20:90] = 1, 2
    own = truth[..., 0].long()
    assert agreement(own, truth) == 1
    torch.manual_seed(0)
    assert abs(agreement(torch.randint(0, 5, (2, 216)), truth)) < 0.05


@pytest.mark.parametrize("number", [1, 24, 36, 108, 216])
def test_blocks_of_the_grid_are_as_many_as_asked(number):
    blocks = fixed_blocks((6, 6, 6), number)
    assert blocks.unique().tolist() == list(range(number))
    assert blocks.bincount().max() <= 2 * blocks.bincount().min()


@pytest.mark.parametrize("group", [ARMS, EQUAL_STEPS, FRONT, ABLATIONS, SWEEP])
def test_every_arm_can_be_built(group):
    for arm in group.values():
        encoder = build_encoder(arm.encoder_config())
        if arm.pretrain is not None and not arm.supervised:
            build_phase(encoder, arm.pretrain_config(10), 0)


def test_names_of_one_setting_are_one_setting():
    assert ABLATIONS["as_is"].identity() == EQUAL_STEPS["hnet_vjepa"].identity()
    changed = [name for name, arm in ABLATIONS.items() if arm.identity() == EQUAL_STEPS["hnet_vjepa"].identity()]
    assert changed == ["as_is"]


def test_the_front_is_what_nothing_beats_in_both():
    middle = {"cheap": (1.0, 0.5), "good": (2.0, 0.9), "worse": (2.0, 0.8), "dear": (3.0, 0.9), "twin": (1.0, 0.5)}
    assert front(middle) == ["cheap", "good", "twin"]


def test_variants_are_told_by_means_over_seeds(about, tmp_path):
    for name, arm in about["arms"].items():
        arm |= {"encode_ms": [1.0, 3.0], "validation": [0.8, 0.9 if name == "hnet_vjepa" else 0.8]}
    (tmp_path / "learning_front.json").write_text(json.dumps(about))
    text = page(tmp_path)
    assert (
        "| hnet_vjepa | 0.850 (0.800, 0.900) |" in text
        and "and better, by the means over seeds, than: hnet_vjepa." in text
    )


def test_finished_arms_come_back_from_the_json(tmp_path):
    args = argparse.Namespace(work=tmp_path / "a", seconds=1.0, steps=None, seeds=3)
    made = [("hnet_vjepa", 0), ("hnet_vjepa", 2), ("supervised", 0), ("random_hnet", 1)]
    for name, seed in made:
        row = {"name": name, "seed": seed, "identity": identity(ARMS[name], args), "linear": seed / 10}
        save(args.work, row | {"budget_linear": [0.1, seed]} | ({"spearman_motion": 0.7} if seed else {}))
    about = json.loads(json.dumps(summary(collect(finished(ARMS, args), MEASURES), 1.0, None, 2)))
    about["arms"]["raw_pixels"] = {"linear": [0.2]}  # measured anew each time
    again = argparse.Namespace(**vars(args) | {"work": tmp_path / "b"})
    assert unpack(about, again.work) == len(made) and unpack(about, again.work) == 0
    kept = finished(ARMS, again)
    assert sorted((name, row["seed"]) for name, rows in kept.items() for row in rows) == sorted(made)
    assert collect(kept, MEASURES) == collect(finished(ARMS, args), MEASURES)


def test_clips_come_back_as_they_were_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "PARTS", {"test": (3, 7), "train": (2, 8)})
    for part, masks in (("test", True), ("train", False)):
        drawn, kept = learning.clips(tmp_path, part), learning.clips(tmp_path, part)
        assert (kept.mask is not None) == masks and len(kept) == len(drawn)
        for name, tensor in vars(drawn).items():
            assert tensor is None or torch.equal(tensor, getattr(kept, name))
