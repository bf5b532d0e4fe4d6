"""The one loop: resume to the bit, order of data, guards, schedules."""

import itertools
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from polyspace.data.batch import CachedFeatures, VideoBatch
from polyspace.train.checkpoint import load_checkpoint, save_checkpoint
from polyspace.train.engine import PlainEngine
from polyspace.train.loop import FitSettings, fit, step_visits
from polyspace.train.optim import build_adamw, cosine_schedule, warmup_cosine
from polyspace.train.phase import Phase, StepOutput
from polyspace.utils.checkpoint_io import load_strict
from polyspace.utils.errors import UserError

SETTINGS = FitSettings(steps=12, batch=4, lr=1e-2, save_every=3, log_every=1, eval_every=4)


class Toy(Phase):
    """A regression with dropout (draws from the generator) and a moving average of its weight."""

    def __init__(self, stop_at: int | None = None, poison: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        self.register_buffer("average", torch.zeros(8, 3))
        self.stop_at, self.poison, self.calls = stop_at, poison, 0

    def forward(self, batch: VideoBatch) -> StepOutput:
        self.calls += 1
        loss = (self.net(batch.features["x"])[:, 0] - batch.label).square().mean()
        if self.poison is not None and self.calls > self.poison:
            loss = loss * float("nan")
        return StepOutput(loss, {"again": loss.detach()})

    def after_update(self, step: int) -> None:
        self.average.lerp_(self.net[0].weight.detach(), 0.1)
        if self.stop_at == step + 1:
            raise RuntimeError("stopped")

    def evaluate(self, step: int) -> dict:
        return {"score": float(step)}


def data() -> CachedFeatures:
    generator = torch.Generator().manual_seed(1)
    return CachedFeatures({"x": torch.randn(10, 3, generator=generator)}, torch.randn(10, generator=generator))


def engine_of(phase, lr=1e-2):
    return PlainEngine(phase, build_adamw(phase, lr, 0.01), torch.device("cpu"))


def train(phase, folder, settings=SETTINGS, about=None):
    torch.manual_seed(7)
    items, engine = data(), engine_of(phase, settings.lr)
    return fit(engine, len(items), items.batch, settings, folder, about=about), engine


@pytest.mark.parametrize("stop_at", [1, 3, 5, 9, 11])
def test_stopped_anywhere_and_resumed_it_ends_in_the_same_bits(tmp_path, stop_at):
    whole = Toy()
    metrics, engine = train(whole, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        train(Toy(stop_at=stop_at), tmp_path / "cut")
    resumed = Toy()
    torch.manual_seed(99)  # the state of the generators comes from the checkpoint
    again, engine2 = train(resumed, tmp_path / "cut")
    assert again == metrics
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    kept, kept2 = engine.optimizer_state(), engine2.optimizer_state()
    assert kept.keys() == kept2.keys() and all(torch.equal(kept[name], kept2[name]) for name in kept)
    lines = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("whole", "cut")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == 15


def test_a_run_with_other_settings_is_not_continued(tmp_path):
    train(Toy(), tmp_path, about={"data": 1})
    with pytest.raises(UserError, match="other settings or data"):
        train(Toy(), tmp_path, about={"data": 2})


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    class Plain(Toy):
        def __init__(self):
            super().__init__()
            self.net[1] = torch.nn.Identity()

    one, four = Plain(), Plain()
    train(one, tmp_path / "1", FitSettings(steps=5, batch=4, lr=1e-2))
    train(four, tmp_path / "4", FitSettings(steps=5, batch=4, lr=1e-2, accumulate=4))
    torch.testing.assert_close(one.net[0].weight, four.net[0].weight)


def test_every_item_is_seen_once_an_epoch_and_any_step_can_be_had_alone():
    seen = torch.cat([step_visits(10, 4, step, seed=3) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) and sorted(seen[10:].tolist()) == list(range(10, 20))
    assert not torch.equal(seen[:10], seen[10:] - 10)
    assert torch.equal(step_visits(10, 4, 3, seed=3), seen[12:16])
    assert len(step_visits(3, 7, 0, seed=0)) == 7


def test_non_finite_steps_are_skipped_and_after_a_few_the_run_stops_at_the_last_good_state(tmp_path):
    phase = Toy(poison=6)
    with pytest.raises(UserError, match="5 non-finite steps in a row"):
        train(phase, tmp_path)
    good = Toy()
    state = load_checkpoint(tmp_path, engine_of(good))
    assert state["step"] in (6, 9) and all(torch.isfinite(v).all() for v in good.state_dict().values())


def test_items_that_cannot_be_had_leave_out_their_micro_batch_or_the_whole_update(tmp_path, capsys):
    settings = FitSettings(steps=3, batch=4, lr=1e-2, accumulate=2, save_every=3, log_every=1)
    items, asked, phase = data(), itertools.count(), Toy()

    def load(picks):
        return None if next(asked) in (1, 2, 3) else items.batch(picks)  # half of step 0, all of step 1

    engine = PlainEngine(phase, build_adamw(phase, settings.lr, 0.01), torch.device("cpu"))
    metrics = fit(engine, len(items), load, settings, tmp_path)
    assert phase.calls == 3 and metrics["step"] == 3
    assert [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 3]
    assert "none of its 4 items can be had" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_taken(tmp_path, capsys):
    whole, again = Toy(), Toy()
    train(whole, tmp_path)
    names = ("model.safetensors", "trainer.pt", "checksums.json")
    for name in names:
        flip_last(tmp_path / "step_000012" / name)
        assert load_checkpoint(tmp_path, engine_of(Toy()))["step"] == 9
        said = capsys.readouterr().err
        assert f"step_000012/{name} is" in said and "going on from step_000009 instead" in said
        flip_last(tmp_path / "step_000012" / name)
    flip_last(tmp_path / "step_000012" / names[0])
    train(again, tmp_path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    for step in (9, 12):
        flip_last(tmp_path / f"step_{step:06d}" / "trainer.pt")
    with pytest.raises(UserError, match=r"trainer\.pt is damaged.*no other one is whole; remove .* to begin again"):
        load_checkpoint(tmp_path, engine_of(Toy()))


@pytest.mark.parametrize("content", [b"", b"step_0000", b"step_000015", b"\xff\x00", b".."])
def test_a_damaged_latest_is_said_and_the_newest_checkpoint_taken(tmp_path, capsys, content):
    train(Toy(), tmp_path)
    (tmp_path / "latest").write_bytes(content)
    assert load_checkpoint(tmp_path, engine_of(Toy()))["step"] == 12
    assert (
        "latest is damaged: it names no checkpoint that is there; going on from step_000012" in capsys.readouterr().err
    )


def flip_last(file):
    """One bit near the end, that of a digit in JSON."""
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(bytes(content))


def test_strict_loading_lists_what_does_not_fit(tmp_path):
    state = Toy().state_dict()
    with pytest.raises(UserError, match=r"missing \['average'\], unexpected \['extra'\]"):
        load_strict(Toy(), {k: v for k, v in state.items() if k != "average"} | {"extra": torch.ones(1)}, tmp_path)
    with pytest.raises(UserError, match=r"average is \(2,\), not \(8, 3\)"):
        load_strict(Toy(), state | {"average": torch.ones(2)}, tmp_path)


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    train(Toy(), tmp_path)
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_000009", "step_000012"]
    assert (tmp_path / "latest").read_text() == "step_000012\n"


def test_the_newest_checkpoints_are_those_of_the_highest_steps(tmp_path):
    for step in (999_000, 999_500, 1_000_000):
        save_checkpoint(tmp_path, step, engine_of(Toy()), {})
    assert load_checkpoint(tmp_path, engine_of(Toy()))["step"] == 1_000_000


def test_sigterm_saves_and_stops(tmp_path):
    code = f"""
import sys, os, signal, torch
sys.path[:0] = [{str(REPOSITORY / "tests")!r}, {str(REPOSITORY / "tests" / "train")!r}]
from test_loop import Toy, train, SETTINGS
class Slow(Toy):
    def after_update(self, step):
        super().after_update(step)
        if step == 4: os.kill(os.getpid(), signal.SIGTERM)
try:
    train(Slow(), __import__('pathlib').Path({str(tmp_path)!r}))
except KeyboardInterrupt:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=os.environ).returncode == 7
    assert (tmp_path / "latest").read_text() == "step_000005\n"
    whole, resumed = Toy(), Toy()
    train(whole, tmp_path / "whole")
    train(resumed, tmp_path)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_published_cosine_values_are_reproduced(real_data):
    rows = json.loads((real_data / "numeric" / "cosine_schedule_lightly.json").read_text())
    for step, most, start, end, period, expected in rows:
        assert cosine_schedule(step, most, start, end, period) == pytest.approx(expected, abs=1e-7)


def test_the_rate_rises_then_falls_and_only_matrices_decay():
    rates = [warmup_cosine(s, 100, 1.0, 0.1, 0.01) for s in range(100)]
    assert rates[0] < rates[5] < rates[10] and max(rates) == 1.0 and rates[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    groups = build_adamw(Toy(), 1e-3, 0.1).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.ndim == 2 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])
