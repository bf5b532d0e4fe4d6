"""Which trackers are chosen, what they are handed, and what stays of a finished run."""

import importlib.util
import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polyspace.utils.errors import UserError
from polyspace.utils.trackers import EVENTS, METRICS, TRACKERS, RunLog, TensorBoard, choose, keep_log, scalars


def write(folder, lines, track):
    with RunLog(folder, 0, track) as log:
        for line in lines:
            log.add(line)
        log.flush()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_alone_writes(tmp_path, monkeypatch, rank):
    opened = []
    monkeypatch.setitem(TRACKERS, "seen", lambda run: opened.append(run) or TensorBoard(run))
    monkeypatch.setenv("RANK", str(rank))
    write(tmp_path, [{"step": 1, "loss": 1.0}], ("seen",))
    assert len(opened) == (rank == 0) == len(list(tmp_path.glob(EVENTS))) == len(list(tmp_path.glob(METRICS)))


def test_only_numbers_are_tracked():
    line = {"step": 3, "eval": True, "top1": 0.5, "clips": 2, "unseen": True, "names": ["a"], "none": None}
    assert scalars(line) == {"eval/top1": 0.5, "eval/clips": 2.0}
    assert scalars({"step": 3, "loss": 1.5}) == {"train/loss": 1.5}


def test_auto_is_tensorboard_where_it_is_installed_and_quietly_nothing_elsewhere(monkeypatch, capsys):
    assert choose(["auto"]) == choose(["auto", "tensorboard"]) == ("tensorboard",)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert choose(["auto"]) == choose(["none"]) == choose([]) == ()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["wandb"], r"wandb is not installed: pip install 'polyspace\[wandb\]'"),
        (["tensorbord"], "no tracker 'tensorbord'; did you mean 'tensorboard'"),
        (["none", "tensorboard"], "none goes with no other"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_a_sentence(monkeypatch, names, words):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=words):
        choose(names)


def test_a_folder_named_wandb_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert importlib.util.find_spec("wandb") is not None
    if importlib.util.find_spec("wandb").origin is not None:
        pytest.skip("wandb is installed")
    with pytest.raises(UserError, match="wandb is not installed"):
        choose(["wandb"])


def test_of_a_finished_run_metrics_and_events_are_kept_in_place_of_older_ones(tmp_path):
    for loss in (2.0, 1.0):
        write(tmp_path / "run", [{"step": 1, "loss": loss}], ("tensorboard",))
        keep_log(tmp_path / "run", tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {METRICS, EVENTS}
        [event] = EventAccumulator(str(tmp_path / EVENTS)).Reload().Scalars("train/loss")
        assert (event.step, event.value) == (1, loss) == (1, json.loads((tmp_path / METRICS).read_text())["loss"])
    write(tmp_path / "run", [{"step": 1, "loss": 0.5}], ())
    keep_log(tmp_path / "run", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {METRICS}
