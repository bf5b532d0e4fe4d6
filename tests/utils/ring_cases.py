"""What every rank does in tests/utils/test_ring_attention.py, for context groups of 1, 2, 3 and 4 ranks of one run."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polyspace.models.vjepa.trunk import ViT
from polyspace.utils.distrib import zigzag_ring_attention
from polyspace.utils.sequence import shard_sequence, unshard_sequence

GROUPS = {1: [2], 2: [1, 3], 3: [0, 2, 3], 4: [0, 1, 2, 3]}  # ranks in a group and in the world are different numbers
LOCAL = 6  # tokens a rank


@dataclass(frozen=True)
class Case:
    causal: bool = False
    layout: str = "contiguous"
    pad: str = ""
    bias: bool = False
    pad_queries: bool = False
    width: int = 4
    value_width: int = 4
    scale: float | None = None
    dtype: torch.dtype = torch.float64
    recompute: bool = False
    autocast: bool = False
    strided: bool = False

    @property
    def learned(self) -> tuple[str, ...]:
        return ("q", "k", "v", "bias") if self.bias else ("q", "k", "v")


ZIGZAG: dict = {"causal": True, "layout": "zigzag"}
CASES = {
    "bidirectional": Case(),
    "bidirectional, unequal lengths": Case(pad="unequal"),
    "bidirectional, a rank of padding": Case(pad="rank"),
    "bidirectional, padded queries are 0": Case(pad="unequal", pad_queries=True),
    "bidirectional, recomputed": Case(pad="unequal", recompute=True),
    "learned bias": Case(bias=True),
    "learned bias, unequal lengths": Case(bias=True, pad="unequal", recompute=True),
    "values of another width, given scale": Case(width=3, value_width=5, scale=0.7),
    "not contiguous": Case(strided=True, pad="unequal"),
    "zigzag": Case(**ZIGZAG),
    "zigzag, unequal lengths": Case(**ZIGZAG, pad="unequal"),
    "zigzag, a rank of padding": Case(**ZIGZAG, pad="rank"),
    "zigzag, padding at the start": Case(**ZIGZAG, pad="start", recompute=True),
    "zigzag, learned bias": Case(**ZIGZAG, bias=True, pad="start", value_width=2),
    "causal, contiguous": Case(causal=True),
    "causal, contiguous, a rank of padding": Case(causal=True, pad="rank"),
}
NARROW = {
    f"{'zigzag' if layout else 'bidirectional'}, {str(dtype)[6:]}": Case(
        **layout, pad=pad, width=8, value_width=8, dtype=dtype
    )
    for layout, pad in ((ZIGZAG, ""), ({}, "unequal"))
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
}
AUTOCAST = Case(dtype=torch.float32, autocast=True)


def held(ranks: int, layout: str) -> list[list[int]]:
    """Places in the whole sequence of each rank's tokens, written out."""
    half = LOCAL // 2
    if layout == "contiguous":
        return [list(range(r * LOCAL, (r + 1) * LOCAL)) for r in range(ranks)]
    starts = [(r * half, (2 * ranks - 1 - r) * half) for r in range(ranks)]
    return [[*range(a, a + half), *range(b, b + half)] for a, b in starts]


def whole(case: Case, ranks: int) -> dict[str, Tensor]:
    """q, k, v, the output's gradient, padding and bias of all ranks together."""
    generator = torch.Generator().manual_seed(ranks)
    length = LOCAL * ranks
    shapes = {"q": case.width, "k": case.width, "v": case.value_width, "grad": case.value_width}
    data = {
        name: (2 * torch.randn(3, 2, length, width, generator=generator, dtype=torch.float64)).to(case.dtype)
        for name, width in shapes.items()
    }
    data["bias"] = torch.randn(3, length, generator=generator, dtype=torch.float64)
    place = torch.arange(length)
    lengths = {"": [length] * 3, "unequal": [length - 2, 4, 0]}.get(case.pad, [length] * 3)
    pad = place >= torch.tensor(lengths)[:, None]
    if case.pad == "rank":
        pad[:, held(ranks, case.layout)[-1]] = True
    if case.pad == "start":
        pad[0, :4] = pad[1, : LOCAL + 1] = True
    return data | {"pad": pad}


def attend(case: Case, data: dict[str, Tensor], group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Output and gradients for one rank's data."""
    leaves = {name: data[name].clone().requires_grad_() for name in case.learned}
    pad = data["pad"] if case.pad else None

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if case.strided:
            q, k, v = (x.mT.contiguous().mT for x in (q, k, v))
        return zigzag_ring_attention(
            q,
            k,
            v,
            group=group,
            key_padding_mask=pad,
            key_bias=bias,
            query_padding_mask=pad if case.pad_queries else None,
            is_causal=case.causal,
            layout=case.layout,
            scale=case.scale,
        )

    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        out = checkpoint(run, *leaves.values(), use_reentrant=False) if case.recompute else run(*leaves.values())
        grad = data["grad"].mT.contiguous().mT if case.strided else data["grad"]
        out.backward(grad)
    return {"out": out.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


VIT = {"plain": {}, "recomputed": {"recompute": True}, "two layers": {"layers": 2}, "biased": {"bias": True}}


def vit(changes: dict, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Outputs of a ViT on the sequence's own part, put together, and gradients of the own part's loss."""
    torch.manual_seed(5)
    model = ViT(16, 2, 2, recompute=changes.get("recompute", False), groups=2).double()
    x, weight = torch.randn(2, 3, 13, 16, dtype=torch.float64)
    x, bias = x.requires_grad_(), torch.randn(3, 13, dtype=torch.float64).requires_grad_()
    pad = torch.arange(13) >= torch.tensor([9, 7, 3])[:, None]
    parts = [shard_sequence(t, group) for t in (x, weight, bias)]
    padding, key_bias = shard_sequence(pad, group, value=True), parts[2] if changes.get("bias") else None
    y = model(parts[0], padding, changes.get("layers", 1), key_bias, group)
    (y * parts[1]).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"x": x.grad}
    if changes.get("bias"):
        found["bias"] = bias.grad
    return {"out": unshard_sequence(y.detach(), group, 13), "gradients": found}


def sharding(group: dist.ProcessGroup | None) -> dict:
    """Round trips of several shapes, and the gradient of a whole sequence that every rank reads in its own way."""
    trips = []
    for layout in ("contiguous", "zigzag"):
        for length, dim in ((1, 1), (5, 1), (12, 2), (7, -1), (6, 0)):
            shape = [2, 3, 4]
            shape[dim] = length
            x = torch.arange(torch.Size(shape).numel()).view(shape)
            back = unshard_sequence(
                shard_sequence(x, group, dim=dim, layout=layout), group, length, dim=dim, layout=layout
            )
            trips.append(torch.equal(back, x))
    places = shard_sequence(torch.arange(LOCAL * dist.get_world_size(group))[None], group, layout="zigzag")[0]
    local = places.double()[None, :, None].expand(2, -1, 3).clone().requires_grad_()
    all_of_it = unshard_sequence(local, group, LOCAL * dist.get_world_size(group), layout="zigzag")
    reading = (dist.get_rank(group) + 1) * torch.arange(all_of_it.shape[1]).double()[None, :, None]
    (all_of_it.mT * reading.mT).sum().backward()
    mask = shard_sequence(torch.zeros(1, 1, dtype=torch.bool), group, value=True)
    return {"trips": trips, "places": places, "grad": local.grad, "mask": mask}


def disagreement(group: dist.ProcessGroup) -> str:
    """What a rank is told if only the first one brings a mask."""
    x, pad = torch.randn(1, 1, 4, 2), torch.zeros(1, 4, dtype=torch.bool)
    try:
        zigzag_ring_attention(x, x, x, group=group, key_padding_mask=pad if dist.get_rank(group) == 0 else None)
    except ValueError as error:
        return str(error)
    return ""


def everything(group: dist.ProcessGroup) -> dict:
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    found: dict = {"rank": rank, "attention": {}}
    for name, case in (CASES | NARROW | {"autocast": AUTOCAST}).items():
        rows = held(ranks, case.layout)[rank]
        data = {key: x[..., rows, :] if x.dim() == 4 else x[:, rows] for key, x in whole(case, ranks).items()}
        found["attention"][name] = attend(case, data, group)
    found["vit"] = {name: vit(changes, group) for name, changes in VIT.items()}
    return found | {"sharding": sharding(group), "told": disagreement(group)}
