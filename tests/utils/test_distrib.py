"""Collectives give the one-process result, forward and backward, in the input's dtype."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from polyspace.models.ema import Ema
from polyspace.utils import distrib


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_one_process_changes_nothing():
    x = torch.randn(3, 2)
    assert distrib.all_reduce_sum(x) is x and distrib.all_gather_cat(x) is x
    assert distrib.gather_objects("a") == ["a"] and distrib.is_main() and distrib.world_size() == 1


def _rank(rank: int, world: int, port: int, out: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distrib.initialize(60)
    torch.manual_seed(0)
    full = torch.randn(2 * world, 3, dtype=torch.float64)
    weight = torch.randn(3, 2 * world, dtype=torch.float64)
    local = full[2 * rank : 2 * rank + 2].clone().requires_grad_()
    # transposed, so that the incoming gradient is not contiguous
    loss = ((weight @ distrib.all_gather_cat(local)).T ** 3).sum() + distrib.all_reduce_sum(local.sum(0)).pow(4).sum()
    (loss / world).backward()
    half = distrib.all_reduce_sum(torch.ones(2, dtype=torch.float16))
    torch.save((loss.detach(), local.grad, half, distrib.gather_objects(rank)), f"{out}/{rank}.pt")
    few = full[: rank + 1].clone().requires_grad_()  # ranks with one and two rows
    distrib.all_gather_cat(few).mul(weight.T[:3]).sum().backward()
    told = distrib.once(lambda: f"said by {rank}"), distrib.agreed(rank)
    online = torch.nn.Linear(2, 2)
    targets = []
    for shared in (False, True):
        ema = Ema(torch.nn.Linear(2, 2).requires_grad_(False))
        torch.nn.init.constant_(ema.model.weight, float(rank))
        ema.update(online, 0.5, shared)
        targets.append(ema.model.weight)
    torch.save((few.grad, told, targets), f"{out}/more_{rank}.pt")
    distrib.shutdown()


@pytest.mark.dist
@pytest.mark.parametrize("world", [2])
def test_gathered_and_summed_gradients_equal_those_of_one_process(tmp_path, world):
    mp.spawn(_rank, (world, free_port(), str(tmp_path)), nprocs=world)
    torch.manual_seed(0)
    full = torch.randn(2 * world, 3, dtype=torch.float64).requires_grad_()
    weight = torch.randn(3, 2 * world, dtype=torch.float64)
    loss = ((weight @ full).T ** 3).sum() + full.sum(0).pow(4).sum()
    loss.backward()
    for rank in range(world):
        got, grad, half, ranks = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(got, loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(grad, full.grad[2 * rank : 2 * rank + 2], rtol=1e-12, atol=1e-12)
        assert half.dtype == torch.float16 and half.tolist() == [world, world] and ranks == [0, 1]
    (one, told, first), (two, also_told, second) = (torch.load(tmp_path / f"more_{r}.pt") for r in range(world))
    assert torch.equal(torch.cat([one, two]), world * weight.T[:3])  # of unequal rows, from both ranks' losses
    assert told == also_told == ("said by 0", 0)
    assert not torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])  # without and with a broadcast


def test_recomputing_a_sequence_changes_no_value_and_no_gradient():
    calls, layers = [], [torch.nn.Linear(3, 3).double() for _ in range(5)]

    def function(i: int):
        return lambda x, more: calls.append(i) or F.dropout(layers[i](x).sin() + more, 0.3)

    functions, start, more = [function(i) for i in range(5)], torch.randn(2, 3).double(), torch.randn(3).double()
    found = []
    for segments in (0, None, 1, 2):
        calls.clear()
        torch.manual_seed(1)
        x, leaf = start.clone().requires_grad_(), more.clone().requires_grad_()
        if segments == 0:
            y = x
            for f in functions:
                y = f(y, leaf)
        else:
            y = distrib.checkpoint_sequential(functions, x, leaf, segments=segments)
        y.pow(2).sum().backward()
        found.append((y.detach(), x.grad, leaf.grad))
        assert sorted(calls) == sorted([*range(5)] * (1 if segments == 0 else 2))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


def test_activations_of_a_recomputed_sequence_are_not_kept():
    kept = []
    layers = [torch.nn.Linear(4, 4) for _ in range(6)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        distrib.checkpoint_sequential([lambda x, f=f: f(x).sin().cos() for f in layers], torch.randn(2, 4), segments=2)
    assert len(kept) <= 2


def test_a_sequence_of_nothing_is_its_input_and_segments_must_fit():
    x = torch.randn(2)
    assert distrib.checkpoint_sequential([], x) is x
    with torch.no_grad():
        assert torch.equal(distrib.checkpoint_sequential([torch.sin, torch.cos], x), x.sin().cos())
    with pytest.raises(ValueError, match="1 to 2"):
        distrib.checkpoint_sequential([torch.sin, torch.cos], x, segments=3)
