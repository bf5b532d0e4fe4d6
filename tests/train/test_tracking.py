"""What the loop logs reaches TensorBoard and W&B, and nothing that they do reaches the training."""

import json
import random
import shutil
import sys
import types

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_loop import SETTINGS, Toy, data, engine_of

from polyspace.train.loop import fit
from polyspace.utils.trackers import EVENTS, TRACKERS, scalars


def train(phase, folder, track=("tensorboard",), about=None):
    torch.manual_seed(7)
    items = data()
    return fit(engine_of(phase), len(items), items.batch, SETTINGS, folder, about=about, track=track)


def events(folder) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value), …]} as TensorBoard shows it."""
    read = EventAccumulator(str(folder / EVENTS), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def expected(folder) -> dict[str, list[tuple[int, float]]]:
    """The same of metrics.jsonl, in single precision as events are."""
    out: dict = {}
    for line in lines(folder):
        group = "eval" if line.get("eval") else "train"
        for key in line.keys() - {"step", "eval"}:
            rounded = torch.tensor(line[key], dtype=torch.float32).item()
            out.setdefault(f"{group}/{key}", []).append((line["step"], rounded))
    return out


class StubWandB(types.ModuleType):
    """Stands in for the package: remembers runs, and merges rows of one step as W&B does."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list = []

    def init(self, **given):
        run = types.SimpleNamespace(given=given, rows={}, ended=None)
        run.log = lambda values, step: run.rows.setdefault(step, {}).update(values)
        run.finish = lambda exit_code: setattr(run, "ended", exit_code)
        random.random()  # the loop must not depend on Python's generator
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch):
    stub = StubWandB()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def test_events_hold_the_numbers_of_metrics_jsonl_in_two_groups(tmp_path):
    train(Toy(), tmp_path)
    assert events(tmp_path) == expected(tmp_path)
    assert events(tmp_path).keys() == {"train/loss", "train/lr", "train/again", "train/grad_norm", "eval/score"}


@pytest.mark.parametrize("stop_at", [2, 5, 11])
def test_a_killed_and_resumed_run_shows_one_curve(tmp_path, stop_at):
    with pytest.raises(RuntimeError, match="stopped"):
        train(Toy(stop_at=stop_at), tmp_path)
    before = {path.name for path in (tmp_path / EVENTS).iterdir()}
    train(Toy(), tmp_path)
    assert len(before) == 1 and before < {path.name for path in (tmp_path / EVENTS).iterdir()}
    found = events(tmp_path)
    assert [step for step, _ in found["train/loss"]] == list(range(1, 13)) and found == expected(tmp_path)


def test_a_folder_without_events_is_given_the_history_first(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        train(Toy(stop_at=8), tmp_path, track=())
    assert not (tmp_path / EVENTS).exists()
    train(Toy(), tmp_path)
    assert len(events(tmp_path)["train/loss"]) == 12 and events(tmp_path) == expected(tmp_path)


def test_tracking_changes_no_bit_and_turning_it_on_refuses_no_resume(tmp_path, wandb):
    plain, tracked, mixed = Toy(), Toy(), Toy()
    train(plain, tmp_path / "plain", track=())
    train(tracked, tmp_path / "tracked", track=("tensorboard", "wandb"))
    with pytest.raises(RuntimeError, match="stopped"):
        train(Toy(stop_at=7), tmp_path / "mixed", track=("wandb",))
    train(mixed, tmp_path / "mixed", track=())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, tracked.state_dict()[name]) and torch.equal(value, mixed.state_dict()[name])
    assert lines(tmp_path / "plain") == lines(tmp_path / "tracked") == lines(tmp_path / "mixed")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_events_that_can_no_longer_be_written_are_one_warning_and_the_same_training(tmp_path, capsys):
    class Unlucky(Toy):
        def after_update(self, step):
            super().after_update(step)
            if step == 4:
                shutil.rmtree(tmp_path / "hit" / EVENTS)

    plain, hit = Toy(), Unlucky()
    train(plain, tmp_path / "plain")
    capsys.readouterr()
    train(hit, tmp_path / "hit")
    assert capsys.readouterr().err.count("warning: tensorboard is given up, training goes on") == 1
    assert all(torch.equal(value, hit.state_dict()[name]) for name, value in plain.state_dict().items())
    assert lines(tmp_path / "plain") == lines(tmp_path / "hit")


@pytest.mark.parametrize("at", ["init", "add", "flush", "close"])
def test_a_tracker_that_fails_is_given_up_with_one_warning_and_the_others_go_on(tmp_path, capsys, monkeypatch, at):
    calls = []

    class Failing:
        def __init__(self, run):
            self.meet("init")

        def meet(self, name):
            calls.append(name)
            if name == at:
                raise OSError(28, "No space left on device")

        def add(self, step, values):
            self.meet("add")

        def flush(self):
            self.meet("flush")

        def close(self, sound):
            self.meet("close")

    monkeypatch.setitem(TRACKERS, "failing", Failing)
    train(Toy(), tmp_path, track=("failing", "tensorboard"))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert said == ["warning: failing is given up, training goes on (OSError: [Errno 28] No space left on device)"]
    assert calls.count(at) == (2 if at == "close" else 1) and events(tmp_path) == expected(tmp_path)


def test_wandb_gets_settings_metrics_and_an_id_by_which_a_killed_run_goes_on(tmp_path, wandb):
    with pytest.raises(RuntimeError, match="stopped"):
        train(Toy(stop_at=5), tmp_path / "out" / "probe", ("wandb",), {"data": {"clips": 3}})
    train(Toy(), tmp_path / "out" / "probe", ("wandb",), {"data": {"clips": 3}})
    train(Toy(), tmp_path / "out" / "other", ("wandb",), {"data": {"clips": 3}})
    killed, resumed, other = wandb.runs
    assert (killed.ended, resumed.ended) == (1, 0)
    assert killed.given == resumed.given and killed.given["id"] != other.given["id"]
    told = killed.given
    assert (told["project"], told["name"], told["resume"]) == ("polyspace", "out/probe", "allow")
    assert told["config"]["lr"] == SETTINGS.lr and told["config"]["data"] == {"clips": 3}
    rows: dict = {}
    for line in lines(tmp_path / "out" / "probe"):
        rows.setdefault(line["step"], {}).update(scalars(line))
    assert killed.rows | resumed.rows == rows and min(resumed.rows) == 4


def test_a_run_that_goes_on_within_the_same_second_is_read_in_order(tmp_path, monkeypatch):
    now = [1000.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr("polyspace.utils.trackers.time", types.SimpleNamespace(time=lambda: now[0], sleep=sleep))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", types.SimpleNamespace(time=lambda: now[0]))
    for stop_at in (4, 7):
        with pytest.raises(RuntimeError, match="stopped"):
            train(Toy(stop_at=stop_at), tmp_path)
    train(Toy(), tmp_path)
    assert sorted(path.name.split(".")[3] for path in (tmp_path / EVENTS).iterdir()) == [
        f"{1000 + i:010d}" for i in range(3)
    ]
    assert events(tmp_path) == expected(tmp_path)
