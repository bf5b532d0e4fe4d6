"""One rank and many train the same: losses, parameters, moving averages, and checkpoints across numbers of ranks."""

import json
import shutil
import socket

import pytest
import torch
import torch.multiprocessing as mp
from engine_cases import STEPS, ranks, train

from polyspace.train.checkpoint import SHARDED
from polyspace.utils.errors import UserError
from polyspace.utils.world import World, make_world

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def spawn(world: int, runs: list[tuple[str, str, int, str]], out) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(ranks, (world, port, runs, str(out)), nprocs=world)


def losses(folder) -> torch.Tensor:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [[row["loss"], row["energy"], row["vicregl"], row["grad_norm"]] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64)


def halfway(source, target):
    """The run as it was at its first checkpoint."""
    shutil.copytree(source, target)
    shutil.rmtree(target / f"step_{STEPS:06d}")
    (target / "latest").write_text(f"step_{STEPS // 2:06d}\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines")
    train("plain", out / "plain")
    train("plain", out / "plain_fp32", precision="fp32")
    train("plain", out / "poisoned_fp32", precision="fp32")
    spawn(4, [("both", "ddp", 2, "fp64"), ("fsdp", "fsdp", 1, "fp64")], out)
    halfway(out / "fsdp", out / "fsdp_on_ddp")
    halfway(out / "both", out / "ddp_on_fsdp")
    halfway(out / "fsdp", out / "fsdp_on_one")
    train("plain", out / "fsdp_on_one")
    two = [("ddp", "ddp", 1, "fp64"), ("fsdp_on_ddp", "ddp", 1, "fp64"), ("ddp_on_fsdp", "fsdp", 2, "fp64")]
    poisoned = [(f"poisoned_{kind}", kind, 1, "fp32") for kind in ("ddp", "fsdp")]
    spawn(2, [*two, ("ddp_fp32", "ddp", 1, "fp32"), *poisoned], out)
    return out


@pytest.fixture(scope="module")
def zero(runs):
    """DeepSpeed from the start, and from half-way of a run of one process."""
    pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
    halfway(runs / "plain_fp32", runs / "plain_on_zero")
    names = ("zero", "plain_on_zero", "poisoned_deepspeed")
    spawn(2, [(name, "deepspeed", 1, "fp32") for name in names], runs)
    halfway(runs / "zero", runs / "zero_on_plain")
    train("plain", runs / "zero_on_plain", precision="fp32")
    return runs


@pytest.mark.parametrize("name", ["ddp", "both", "fsdp"])
def test_two_and_four_ranks_have_the_losses_and_gradients_of_one(runs, name):
    torch.testing.assert_close(losses(runs / name), losses(runs / "plain"), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["fsdp_on_one", "fsdp_on_ddp", "ddp_on_fsdp"])
def test_a_checkpoint_goes_on_with_another_engine_and_number_of_ranks(runs, name):
    torch.testing.assert_close(losses(runs / name), losses(runs / "plain"), rtol=1e-9, atol=0)


def _close_in_fp32(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_in_fp32_two_ranks_stay_near_one(runs):
    _close_in_fp32(losses(runs / "ddp_fp32"), losses(runs / "plain_fp32"))


@pytest.mark.parametrize("name", ["zero", "plain_on_zero", "zero_on_plain"])
def test_deepspeed_stays_near_one_process_and_goes_on_where_that_stopped(zero, name):
    _close_in_fp32(losses(zero / name), losses(zero / "plain_fp32"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "deepspeed"])
def test_what_is_not_finite_on_one_rank_is_no_update_on_all(request, kind):
    runs = request.getfixturevalue("zero" if kind == "deepspeed" else "runs")
    _close_in_fp32(losses(runs / f"poisoned_{kind}"), losses(runs / "poisoned_fp32"))
    assert len(losses(runs / f"poisoned_{kind}")) == STEPS - 1 and len(losses(runs / "plain")) == STEPS


@pytest.mark.parametrize(("name", "world"), [("ddp", 2), ("both", 4), ("fsdp", 4), ("zero", 2)])
def test_all_ranks_end_with_the_same_parameters_and_moving_average(request, name, world):
    runs = request.getfixturevalue("zero" if name == "zero" else "runs")
    first, *others = (torch.load(runs / name / f"rank_{r}.pt") for r in range(world))
    assert any(key.startswith("target.") for key in first)
    assert all(torch.equal(value, other[key]) for other in others for key, value in first.items())


def test_parts_are_written_where_a_rank_has_only_a_part(runs):
    parts = list((runs / "fsdp" / f"step_{STEPS:06d}" / SHARDED).glob("*.safetensors"))
    assert len(parts) == 4 and not list(runs.rglob("*.metadata"))
    whole = (runs / "plain" / f"step_{STEPS:06d}" / "model.safetensors").stat().st_size
    assert max(p.stat().st_size for p in parts) < whole


def test_one_process_is_no_group_of_two():
    with pytest.raises(UserError, match="start them with torchrun"):
        make_world(2, torch.device("cpu"))


def test_a_world_of_one_takes_everything():
    assert World().own(torch.arange(5)).tolist() == [0, 1, 2, 3, 4] and not World().any(False, torch.device("cpu"))
