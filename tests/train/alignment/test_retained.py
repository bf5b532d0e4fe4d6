"""Probes of true spaces on translated features, on stores made by hand."""

import json
from types import SimpleNamespace

import torch
from torch import nn
from typecheck import unchecked

from polyspace.models.backbones.base import Classifier
from polyspace.models.spaces.converters import ConverterBank, LinearConverter
from polyspace.train.alignment.retained import _plain, retained_table, teacher_heads

D, CLASSES = 6, 3


def store(n: int, seed: int, unlabelled: int = 0):
    """A student whose first dims tell the class; teacher `same` is a rotation of it, `blind` knows no class."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (n,), generator=g)
    x = torch.randn(n, D, generator=g)
    x[:, :CLASSES] += 6 * torch.nn.functional.one_hot(label, CLASSES)
    features = {"s": x, "same": x.flip(1), "blind": torch.randn(n, 4, generator=g)}
    kept = [None] * unlabelled + label.tolist()[unlabelled:]
    manifest = {"clips": [{"label": k} for k in kept]}
    return SimpleNamespace(
        student="s",
        classes=["a", "b", "c"],
        groups=[f"v{i}" for i in range(n)],
        manifest=manifest,
        labels=lambda: label,
        features=features.__getitem__,
    )


def table(converters):
    bank = ConverterBank(converters)
    return unchecked(retained_table)(store(300, 0), store(200, 1, 20), bank, {"share": 0.2, "seed": 0})


def test_a_perfect_translation_retains_everything_and_a_constant_one_falls_to_chance():
    exact = LinearConverter(torch.eye(D).flip(1), torch.zeros(D))
    nothing = LinearConverter(torch.zeros(D, D), torch.ones(D))
    found = table({"same": exact})
    assert found["same"]["translated"] == found["same"]["true"] > 0.95 and found["same"]["retained"] == 1
    assert found["same"]["loss_ci"] == [0, 0] and found["s (student)"] == {"true": found["same"]["true"]}
    lost = table({"same": nothing})["same"]
    assert lost["translated"] < 0.5 and lost["retained"] < 0.5 and lost["loss_ci"][0] > 0.3
    assert json.dumps(found)  # plain values


def test_a_probe_retrained_on_translations_reads_the_student_and_not_the_teacher():
    """A teacher without the class can't be read even when true, while any invertible map of the student can."""
    found = table({"blind": LinearConverter(torch.randn(D, 4), torch.zeros(4))})["blind"]
    assert found["true"] < 0.5 and found["retrained"] > found["true"] + 0.2
    assert found["retained"] is None  # a share of chance would say nothing


def test_no_share_is_given_where_a_blind_teacher_names_the_largest_class():
    def skewed(n, seed):
        made = store(n, seed)
        label = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) > 0.7).long()  # .7 and .3
        manifest = {"clips": [{"label": k} for k in label.tolist()]}
        return SimpleNamespace(**(vars(made) | {"labels": lambda: label, "manifest": manifest}))

    bank = ConverterBank({"blind": LinearConverter(torch.zeros(D, 4), torch.zeros(4))})
    found = unchecked(retained_table)(skewed(300, 0), skewed(200, 1), bank, {"share": 0.2, "seed": 0})["blind"]
    assert found["true"] > 0.6 and found["retained"] is None


NAMES = ["[A]", "b_", "C", "other"]


def heads(bank_map, names=NAMES):
    linear = nn.Linear(D, len(names))
    with torch.no_grad():
        linear.weight.copy_(torch.eye(D).flip(1)[: len(names)])  # reads the class where `same` keeps it
        linear.bias.zero_()
    cards = {
        "same": SimpleNamespace(classifier=lambda: Classifier(linear, names)),
        "blind": SimpleNamespace(classifier=lambda: None),
    }
    bank = ConverterBank({"same": bank_map, "blind": LinearConverter(torch.zeros(D, 4), torch.zeros(4))})
    return unchecked(teacher_heads)(cards, store(200, 1, 20), bank)


def test_a_teachers_head_agrees_with_itself_on_perfect_translations_and_by_chance_on_constant_ones():
    exact = heads(LinearConverter(torch.eye(D).flip(1), torch.zeros(D)))
    assert set(exact) == {"same"}  # the other teacher has no head
    assert exact["same"]["agreement"] == 1 and exact["same"]["true"] == exact["same"]["translated"] > 0.95
    constant = heads(LinearConverter(torch.zeros(D, D), torch.eye(D)[D - 1]))["same"]
    assert abs(constant["agreement"] - constant["by_chance"]) < 1e-6 and constant["loss_ci"][0] > 0.4
    assert json.dumps(exact) and json.dumps(constant)


def test_a_head_that_lacks_a_class_is_scored_by_agreement_only():
    found = heads(LinearConverter(torch.eye(D).flip(1), torch.zeros(D)), ["a", "b", "another", "other"])["same"]
    assert found["agreement"] == 1 and "true" not in found


def test_class_names_are_compared_without_case_brackets_and_underscores():
    assert _plain("Moving [something] up") == _plain("moving something_up")
