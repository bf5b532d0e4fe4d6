"""Visible cells of a batch laid out block by block, and the three branches of sparse attention among them."""

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyspace.models.hnet.blocks3d import BlockLayout
from polyspace.models.layers import attend, key_mask, split_heads


class BlockRows:
    """Rows of a batch laid out block by block, (B,N,D) -> (B,num_blocks·width,D), with a mask of the real ones: whole
    blocks of keys are gathered at once. A block is as wide as the fullest one, so that hidden cells cost little."""

    def __init__(
        self, place: Int[Tensor, "B N"], pad: Bool[Tensor, "B N"] | None, layout: BlockLayout, whole: bool = False
    ) -> None:
        """`whole`: every cell of the grid is there, in order and none of them padding."""
        self.layout, self.rows, self.whole = layout, place.shape[0], whole
        pad = torch.zeros_like(place, dtype=torch.bool) if pad is None else pad
        if whole:
            self.width, slot = layout.size, place
            self.taken = torch.zeros(self.rows, layout.slots, dtype=torch.bool, device=place.device)
            self.taken = self.taken.scatter(1, place, True).unflatten(1, (layout.num_blocks, -1))
        else:
            slot = self._fill(place, pad)
        self.slots = layout.num_blocks * self.width
        slot = slot + torch.arange(self.rows, device=place.device)[:, None] * self.slots  # into (B·slots)
        self.place = torch.where(pad, self.rows * self.slots, slot)  # padding goes to one spare row behind all others
        self.occupied = self.taken.any(-1)

    def _fill(self, place: Int[Tensor, "B N"], pad: Bool[Tensor, "B N"]) -> Int[Tensor, "B N"]:
        """The slot of every row: the visible cells of a block take its first ones, in the grid's order."""
        block = place // self.layout.size
        size = torch.zeros(self.rows, self.layout.num_blocks, dtype=torch.long, device=place.device)
        size = size.scatter_add(1, block, (~pad).long())
        self.width = max(1, int(size.max()))
        self.taken = torch.arange(self.width, device=place.device) < size[..., None]
        order = torch.where(pad, self.layout.slots, place).argsort(1)
        rank = torch.empty_like(order).scatter(1, order, torch.arange(place.shape[1]).to(order).expand_as(order))
        slot = block * self.width + rank - (size.cumsum(1) - size).gather(1, block)
        found = torch.full((self.rows, self.layout.slots + 1), -1, device=place.device)
        found = found.scatter(1, torch.where(pad, self.layout.slots, place), torch.where(pad, -1, slot))
        self._slot_of = found  # of every position in the grid's blocks; -1 where nothing is visible
        return slot

    @cached_property
    def halo(self) -> Int[Tensor, "B K L"]:
        """Slots of the cells in and around every block; -1: none."""
        halo = self.layout.halo.to(self.taken.device)
        if self.whole:
            return halo.expand(self.rows, -1, -1)
        slots = self._slot_of[:, torch.where(halo < 0, self.layout.slots, halo)]
        most = max(1, int((slots >= 0).sum(-1).max()))
        if most == slots.shape[-1]:
            return slots
        return slots.gather(-1, (slots < 0).byte().argsort(dim=-1, stable=True)[..., :most])

    def enter(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B S D"]:
        out = x.new_zeros(self.rows * self.slots + 1, x.shape[-1])
        out = out.index_copy(0, self.place.flatten(), x.flatten(0, 1))
        return out[:-1].view(self.rows, self.slots, -1)

    def leave(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B N D"]:
        flat = x.reshape(self.rows * self.slots, -1)
        return flat.index_select(0, self.place.flatten().clamp_max(flat.shape[0] - 1)).view(*self.place.shape, -1)

    def means(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B K D"]:
        """Mean over the real cells of each block (0 for an empty one); unreal rows hold 0."""
        blocks = x.view(self.rows, self.layout.num_blocks, self.width, -1)
        return blocks.sum(2) / self.taken.sum(2, keepdim=True).clamp_min(1)

    def compressed(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int
    ) -> Float[Tensor, "B S D"]:
        """Attention to the blocks' mean keys and values."""
        return attend(q, self.means(k), self.means(v), heads, key_mask(~self.occupied, None, q.dtype))

    def best_blocks(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], heads: int, count: int
    ) -> Int[Tensor, "B K n"]:
        """The `count` blocks that each query block attends to most, by the heads' mean weight on compressed keys."""
        qm, km = (split_heads(self.means(part.detach()), heads) for part in (q, k))
        logits = qm @ km.transpose(-1, -2) / qm.shape[-1] ** 0.5
        logits = logits.masked_fill(~self.occupied[:, None, None], float("-inf"))
        return logits.softmax(-1).mean(1).topk(min(count, self.layout.num_blocks), dim=-1).indices

    def selected(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int, count: int
    ) -> Float[Tensor, "B S D"]:
        """Attention to the cells of each query block's `count` best blocks."""
        best = self.best_blocks(q, k, heads, count)
        blocks, size = self.layout.num_blocks, self.width
        row = (best + torch.arange(self.rows, device=q.device)[:, None, None] * blocks).flatten()

        def gather(x: Float[Tensor, "B S D"]) -> Float[Tensor, "K L D"]:
            whole = x.reshape(self.rows * blocks, -1).index_select(0, row)
            return whole.view(self.rows * blocks, best.shape[-1] * size, -1)

        if self.whole and self.place.shape[1] == self.slots:  # the grid fills its blocks
            return self._by_block(q, gather(k), gather(v), None, heads)
        real = self.taken.view(-1, size).index_select(0, row).view(self.rows * blocks, -1)
        return self._by_block(q, gather(k), gather(v), real, heads)

    def local(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int
    ) -> Float[Tensor, "B S D"]:
        """Attention to the cells in and around each query block."""
        halo = self.halo
        offset = torch.arange(self.rows, device=q.device)[:, None, None] * self.slots
        row = (halo.clamp_min(0) + offset).flatten()

        def gather(x: Float[Tensor, "B S D"]) -> Float[Tensor, "K L D"]:
            return x.flatten(0, 1).index_select(0, row).view(-1, halo.shape[-1], x.shape[-1])

        return self._by_block(q, gather(k), gather(v), (halo >= 0).flatten(0, 1), heads)

    def _by_block(
        self,
        q: Float[Tensor, "B S D"],
        k: Float[Tensor, "K L D"],
        v: Float[Tensor, "K L D"],
        real: Bool[Tensor, "K L"] | None,
        heads: int,
    ) -> Float[Tensor, "B S D"]:
        mask = None if real is None else key_mask(~real, None, q.dtype)
        return attend(q.view(-1, self.width, q.shape[-1]), k, v, heads, mask).view_as(q)
