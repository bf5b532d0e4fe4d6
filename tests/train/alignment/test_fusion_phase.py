"""Heads trained side by side, and the controls that no teacher speaks through."""

import pytest
import torch

from polyspace.data.batch import VideoBatch
from polyspace.models.spaces.converters import ConverterBank, LinearConverter
from polyspace.train.alignment.fusion_phase import FusionPhase, HeadSet, HeadShape, control_banks
from polyspace.utils.metrics import r2_score

D, SPACES, CLASSES = 6, {"a": 5, "b": 7}, 3


@pytest.fixture
def bank():
    return ConverterBank({n: LinearConverter(torch.randn(D, e), torch.randn(e)) for n, e in SPACES.items()})


def heads(bank, x):
    teachers = bank(x)
    held = torch.arange(len(x)) % 4 == 0
    banks = {"fusion": bank, **control_banks(bank, x, teachers, held, 0)}
    made = HeadSet(HeadShape(D, SPACES, 16, CLASSES), banks)
    made.fit_inputs(x[~held])
    return made


def test_at_the_start_all_heads_say_the_same(bank):
    x = torch.randn(40, D)
    logits = heads(bank, x)(x)
    assert set(logits) == {"fusion", "student", "shuffled", "random"}
    assert all(torch.equal(z, logits["student"]) for z in logits.values())


def test_shuffled_teachers_know_nothing_and_random_maps_are_maps_of_the_student(bank):
    x = torch.randn(400, D)
    teachers, held = bank(x), torch.arange(400) % 4 == 0
    banks = control_banks(bank, x, teachers, held, 0)
    for name, y in teachers.items():
        assert r2_score(bank[name](x), y, y.mean(0)) == pytest.approx(1)
        assert abs(r2_score(banks["shuffled"][name](x), y, y.mean(0))) < 0.1
        assert torch.linalg.matrix_rank(banks["random"][name](x)) == min(D, SPACES[name])
    again = control_banks(bank, x, teachers, held, 0)
    assert torch.equal(again["random"]["a"](x), banks["random"]["a"](x))


def test_one_head_learns_nothing_from_anothers_loss(bank):
    x, label = torch.randn(20, D), torch.arange(20) % CLASSES
    batch = VideoBatch(features={"student": x}, label=label)
    phase = FusionPhase(heads(bank, x), batch)
    output = phase(batch)
    output.loss.backward()
    alone = FusionPhase(HeadSet(HeadShape(D, SPACES, 16, CLASSES), {"fusion": bank}), batch)
    alone.set.heads["fusion"].load_state_dict(phase.set.heads["fusion"].state_dict())
    alone(batch).loss.backward()
    mine, other = (dict(p.set.heads["fusion"].named_parameters()) for p in (phase, alone))
    assert all(torch.equal(mine[k].grad, other[k].grad) for k in mine)
    assert all(p.grad is None for b in phase.set.banks.values() for p in b.parameters())


def test_the_best_state_of_each_head_is_kept_and_the_choice_needs_a_whole_interval(bank):
    x, label = torch.randn(60, D), torch.arange(60) % CLASSES
    phase = FusionPhase(heads(bank, x), VideoBatch(features={"student": x}, label=label))
    phase.evaluate(5)
    kept = {k: v.clone() for k, v in phase.best_set.heads["fusion"].state_dict().items()}
    with torch.no_grad():
        phase.set.fusion.classifier.bias[0] = 1e4  # always class 0: a third right
    if phase.scores(phase.best_set)["held_out_top1_fusion"] > 1 / 3:
        phase.evaluate(6)
        assert phase.best_steps()["fusion"] == 5
        assert all(torch.equal(v, kept[k]) for k, v in phase.best_set.heads["fusion"].state_dict().items())
    assert phase.choice() == {"head": "student only", "top1": 0.0, "ci": [0.0, 0.0]}
    assert set(phase.gates()) == set(SPACES)
