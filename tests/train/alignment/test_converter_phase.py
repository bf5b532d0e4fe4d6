"""Residual converters: exactly ridge before training, better after it where there is something to add."""

import pytest
import torch

from polyspace.config import validate
from polyspace.losses import l2_loss
from polyspace.models.spaces.converters import load_converters, save_converters
from polyspace.train.alignment.converter_phase import LOSSES, ConverterPhase, PairRows, parse_losses
from polyspace.train.alignment.converter_source import ConverterConfig
from polyspace.train.alignment.gathering import gather
from polyspace.train.alignment.pairs import Block
from polyspace.train.train_converter import fit_bank, held_out_scores, residual_bank
from polyspace.utils.errors import UserError
from polyspace.utils.misc import set_seed

D = 5


@pytest.fixture
def gathered():
    """Teacher `bent` is a non-linear function of the student, `straight` a linear one with noise."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(600, D, generator=g)
    spaces = {"s": x, "bent": torch.cat([x[:, :2] + 3 * x[:, :2].abs(), x], 1) * torch.logspace(1, 0, 7)}
    spaces["straight"] = x[:, :3] + 0.5 * torch.randn(600, 3, generator=g)
    block = Block(spaces, torch.arange(600) % 4 == 0)
    return gather(iter([block]), "s", ["bent", "straight"])


def config(tmp_path, **changes) -> ConverterConfig:
    values = {
        "features": tmp_path / "x.json",
        "save_dir": tmp_path,
        "hidden": 32,
        "epochs": 12,
        "batch": 32,
        "lr": 5e-3,
    }
    return validate(ConverterConfig, values | {"device": "cpu"} | changes)


def ridge_of(gathered):
    from polyspace.models.spaces.converters import fit_converter

    return {name: fit_converter("ridge", part.fit, part.held)[0] for name, part in gathered.items()}


@pytest.mark.parametrize("kind", ["phi_s", "per_dim", "none"])
def test_an_untrained_residual_converter_is_ridge_bit_for_bit(gathered, tmp_path, kind):
    ridge = ridge_of(gathered)
    bank, _ = residual_bank(gathered, ridge, config(tmp_path, standardise=kind))
    x = torch.randn(9, D)
    for name in ridge:
        assert torch.equal(bank[name](x), ridge[name](x))


def test_the_network_adds_what_is_not_linear_and_never_ends_below_ridge(gathered, tmp_path):
    bank, report, epochs = fit_bank(config(tmp_path), gathered, "test")
    bent, straight = (report[name]["kinds"] for name in ("bent", "straight"))
    assert bent["residual_mlp"]["r2"] > bent["ridge"]["r2"] + 0.1 and epochs["bent"] > 0
    assert straight["residual_mlp"]["r2"] >= straight["ridge"]["r2"]
    assert bent["mean"]["r2"] == pytest.approx(0, abs=1e-4) and bent["ridge"]["r2"] > bent["procrustes"]["r2"]
    assert held_out_scores(bank["bent"], gathered["bent"])["r2"] == bent["residual_mlp"]["r2"]
    save_converters(tmp_path / "c.pt", bank, {"student": "s", "spaces": {}, "kind": "ridge", "held_out": {}})
    again, _ = load_converters(tmp_path / "c.pt")
    x = torch.randn(4, D)
    assert all(torch.equal(bank[n](x), again[n](x)) for n in gathered) and again.dims == {"bent": 7, "straight": 3}


@pytest.mark.parametrize("loss", [*LOSSES, "l2=0.5,cosine=2,info_nce=0.1"])
def test_every_loss_alone_and_weighted_trains(gathered, tmp_path, loss):
    bank, report, _ = fit_bank(config(tmp_path, loss=loss, epochs=2), gathered, "test")
    assert all(
        scores["residual_mlp"]["r2"] >= scores["ridge"]["r2"] for scores in (r["kinds"] for r in report.values())
    )
    assert all(p.isfinite().all() for p in bank.parameters())


def test_the_loss_is_taken_in_the_standardised_space(gathered, tmp_path):
    bank, standard = residual_bank(gathered, ridge_of(gathered), config(tmp_path))
    rows = PairRows({name: part.rows for name, part in gathered.items()})
    held = {name: part.held_rows for name, part in gathered.items()}
    means = {name: part.fit.mean_y() for name, part in gathered.items()}
    phase = ConverterPhase(bank, standard, {"l2": 2.0}, held, means)
    batch = rows.batch(torch.arange(50))
    expected = sum(
        2 * l2_loss(s(bank[n](batch.features[f"{n}/x"])), s(batch.features[f"{n}/y"])) for n, s in standard.items()
    )
    assert phase(batch).loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_dropping_never_drops_the_worst_teacher_and_drops_others_as_often_as_said(gathered, tmp_path):
    bank, standard = residual_bank(gathered, ridge_of(gathered), config(tmp_path))
    phase = ConverterPhase(bank, standard, {"l2": 1.0}, {}, {}, drop=0.5)
    kept = torch.stack([phase._kept(torch.tensor([1.0, 3.0, 2.0]), step) for step in range(400)])
    assert kept[:, 1].min() == 1 and 0.4 < kept[:, 0].mean() < 0.6 and 0.4 < kept[:, 2].mean() < 0.6


def test_faults_of_the_loss_flag_are_sentences():
    assert parse_losses("l2, cosine=0.5") == {"l2": 1.0, "cosine": 0.5}
    for text, words in (
        ("cosin", "did you mean 'cosine'"),
        ("l2=x", "NAME=WEIGHT"),
        ("l2=-1", "above 0"),
        ("", "no loss"),
    ):
        with pytest.raises(UserError, match=words):
            parse_losses(text)


def test_the_same_seed_gives_the_same_bits(gathered, tmp_path):
    made = []
    for _ in range(2):
        set_seed(99)  # whatever state the caller leaves
        made.append(fit_bank(config(tmp_path, epochs=2), gathered, "test")[0].state_dict())
    assert all(torch.equal(made[0][k], made[1][k]) for k in made[0])
