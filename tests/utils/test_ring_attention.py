"""Attention over a sequence that is spread over ranks is attention: forward, backward, masks, dtypes, a whole ViT."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from ring_cases import AUTOCAST, CASES, GROUPS, NARROW, VIT, Case, attend, everything, held, vit, whole
from torch import Tensor

from polyspace.utils import distrib
from polyspace.utils.distrib import zigzag_ring_attention


def _rank(rank: int, port: int, out: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distrib.initialize(120)
    groups = {size: dist.new_group(members) for size, members in GROUPS.items()}
    for size, members in GROUPS.items():
        if rank in members:
            torch.save(everything(groups[size]), f"{out}/{size}_{members.index(rank)}.pt")
    distrib.shutdown()


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict[int, list[dict]]:
    """{ranks: what each of them found}, of one run of four processes."""
    out = tmp_path_factory.mktemp("ring")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank, (port, str(out)), nprocs=4)
    return {size: [torch.load(out / f"{size}_{r}.pt") for r in range(size)] for size in GROUPS}


def joined(found: list[dict], name: str, layout: str) -> dict[str, Tensor]:
    """All ranks' parts of a case's results, in order."""
    places = torch.tensor(held(len(found), layout)).flatten().argsort()
    parts = [rank["attention"][name] for rank in found]
    axis = {key: 2 if x.dim() == 4 else 1 for key, x in parts[0].items()}
    return {key: torch.cat([p[key] for p in parts], axis[key]).index_select(axis[key], places) for key in parts[0]}


def dense(case: Case, ranks: int) -> dict[str, Tensor]:
    """The same in one piece: logits, softmax, product, in fp64."""
    data = whole(case, ranks)
    leaves = {name: data[name].double().requires_grad_() for name in case.learned}
    logits = leaves["q"] @ leaves["k"].mT * (case.width**-0.5 if case.scale is None else case.scale)
    if case.bias:
        logits = logits + leaves["bias"][:, None, None]
    seen = ~data["pad"][:, None, None].expand_as(logits)
    if case.causal:
        seen = seen & torch.ones(seen.shape[-2:], dtype=torch.bool).tril()
    out = (logits.masked_fill(~seen, -1e9).softmax(-1) * seen) @ leaves["v"]
    if case.pad_queries:
        out = out * ~data["pad"][:, None, :, None]
    out.backward(data["grad"].double())
    return {"out": out.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def apart(x: Tensor, y: Tensor) -> float:
    return ((x.double() - y).norm() / y.norm().clamp_min(1e-3)).item()


@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", GROUPS)
def test_the_ring_is_dense_attention_in_fp64(ran, ranks, name):
    case = CASES[name]
    got, expected = joined(ran[ranks], name, case.layout), dense(case, ranks)
    assert set(got) == set(expected)
    for key, x in expected.items():
        assert got[key].isfinite().all() and got[key].dtype == torch.float64
        assert apart(got[key], x) < 1e-12, key


@pytest.mark.dist
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.pad])
@pytest.mark.parametrize("ranks", GROUPS)
def test_padding_has_no_gradient_and_a_query_without_keys_gives_nothing(ran, ranks, name):
    case = CASES[name]
    got, pad = joined(ran[ranks], name, case.layout), whole(case, ranks)["pad"]
    rows = pad[:, None].expand(-1, 2, -1)
    assert not got["dk"][rows].any() and not got["dv"][rows].any()
    if case.bias:
        assert not got["dbias"][pad].any()
    blind = pad.cumprod(1).bool() if case.causal else pad.all(1, keepdim=True).expand_as(pad)
    blind = (pad if case.pad_queries else blind)[:, None].expand(-1, 2, -1)
    assert not got["out"][blind].any() and not got["dq"][blind].any()
    assert case.pad == "rank" or blind.any()


@pytest.mark.dist
@pytest.mark.parametrize("name", NARROW)
def test_narrow_types_are_no_further_from_the_truth_than_dense_attention(ran, name):
    """Of so few numbers a single error is a matter of luck and of the processor; together they should be alike."""
    case, ours, own = NARROW[name], [], []
    for ranks in GROUPS:
        got, truth, data = joined(ran[ranks], name, case.layout), dense(case, ranks), whole(case, ranks)
        q, k, v = (data[key].requires_grad_() for key in "qkv")
        mask = ~data["pad"][:, None, None] if case.pad else None
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=case.causal)
        out.backward(data["grad"])
        plain = {"out": out.detach(), "dq": q.grad, "dk": k.grad, "dv": v.grad}
        assert all(got[key].dtype == case.dtype for key in plain)
        ours += [apart(got[key], truth[key]) for key in plain]
        own += [apart(x, truth[key]) for key, x in plain.items()]
    assert max(a / b for a, b in zip(ours, own, strict=True)) < 1.6
    assert sum(ours) < 1.1 * sum(own)


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_autocast_does_not_narrow_the_ring(ran, ranks):
    got, truth = joined(ran[ranks], "autocast", "contiguous"), dense(AUTOCAST, ranks)
    assert all(apart(got[key], truth[key]) < 1e-6 for key in truth)


@pytest.mark.dist
@pytest.mark.parametrize("name", VIT)
@pytest.mark.parametrize("ranks", GROUPS)
def test_a_vit_on_parts_of_sequences_is_the_vit_on_whole_ones(ran, ranks, name):
    expected = vit(VIT[name], None)
    found = [rank["vit"][name] for rank in ran[ranks]]
    for part in found:
        assert apart(part["out"], expected["out"]) < 1e-12
    for key, grad in expected["gradients"].items():
        total = sum(part["gradients"][key] for part in found)
        assert (total - grad).abs().max() < 1e-12 * max(1, grad.abs().max()), key


@pytest.mark.dist
@pytest.mark.parametrize("ranks", GROUPS)
def test_parts_make_the_whole_again_and_its_gradient_is_every_reader_s(ran, ranks):
    for rank, found in enumerate(part["sharding"] for part in ran[ranks]):
        assert all(found["trips"])
        if ranks > 1:
            assert found["places"].tolist() == held(ranks, "zigzag")[rank]
        readers = ranks * (ranks + 1) / 2
        assert torch.equal(found["grad"], readers * found["places"].double()[None, :, None].expand(2, -1, 3))
        assert found["mask"].tolist() == [[rank > 0]]


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_rank_is_told_if_they_come_with_different_masks(ran, ranks):
    for part in ran[ranks]:
        assert f"masked or biased: {[1] + [0] * (ranks - 1)}" in part["told"]


@pytest.mark.parametrize("name", CASES)
def test_without_a_group_it_is_dense_attention(name):
    case = CASES[name]
    got, expected = attend(case, whole(case, 1), None), dense(case, 1)
    for key, x in expected.items():
        assert torch.allclose(got[key], x, rtol=1e-12, atol=1e-12), key


def test_what_can_not_be_meant_is_refused():
    x = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match="striped"):
        zigzag_ring_attention(x, x, x, layout="striped")
    with pytest.raises(ValueError, match="balances causal"):
        zigzag_ring_attention(x, x, x, layout="zigzag")
    with pytest.raises(ValueError, match="4 and 3"):
        zigzag_ring_attention(x, x[:, :, 1:], x[:, :, 1:], is_causal=True)
    with pytest.raises(ValueError, match=r"torch\.float64"):
        zigzag_ring_attention(x, x.double(), x)
