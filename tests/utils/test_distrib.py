"""Collectives give the one-process result, forward and backward, in the input's dtype."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

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
