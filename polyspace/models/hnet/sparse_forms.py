"""Two forms of the sparse branches, one function: block by block, or packed rows under masks."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyspace.models.hnet.blocks3d import BlockLayout
from polyspace.models.layers import attend, key_mask, split_heads


class _Form(ABC):
    """Rows (B,N,D) as a form holds them, (B,S,D) in and out of `enter` and `leave`. `occupied` (B,K): blocks in which a
    cell is visible."""

    layout: BlockLayout
    occupied: Bool[Tensor, "B K"]

    @abstractmethod
    def enter(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B S D"]: ...

    @abstractmethod
    def leave(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B N D"]: ...

    @abstractmethod
    def means(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B K D"]:
        """Mean over the real cells of each block, 0 for an empty one."""

    @abstractmethod
    def selected(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int, count: int
    ) -> Float[Tensor, "B S D"]:
        """Attention to the cells of each query block's `count` best blocks."""

    @abstractmethod
    def local(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int
    ) -> Float[Tensor, "B S D"]:
        """Attention to the cells in and around each query block."""

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


class Packed(_Form):
    """The rows as they come, each branch a dense attention under its mask (B,N,N): the faster form where few cells of a
    grid are visible."""

    def __init__(self, place: Int[Tensor, "B N"], pad: Bool[Tensor, "B N"] | None, layout: BlockLayout) -> None:
        self.layout, self.place = layout, place
        self.block = place // layout.size
        self.pad = torch.zeros_like(place, dtype=torch.bool) if pad is None else pad
        real = (~self.pad).long()
        self.size = torch.zeros(place.shape[0], layout.num_blocks, dtype=torch.long, device=place.device)
        self.size = self.size.scatter_add(1, self.block, real)
        self.occupied = self.size > 0

    def enter(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return torch.where(self.pad[..., None], 0, x)

    def leave(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return x

    def means(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B K D"]:
        total = x.new_zeros(*self.size.shape, x.shape[-1])
        total = total.scatter_add(1, self.block[..., None].expand_as(x), x)
        return total / self.size.clamp_min(1)[..., None]

    def selected(
        self, q: Float[Tensor, "B N D"], k: Float[Tensor, "B N D"], v: Float[Tensor, "B N D"], heads: int, count: int
    ) -> Float[Tensor, "B N D"]:
        best = self.best_blocks(q, k, heads, count)
        chosen = torch.zeros(*best.shape[:2], self.layout.num_blocks, dtype=torch.bool, device=q.device)
        chosen = chosen.scatter(2, best, True)
        rows = chosen.gather(1, self.block[..., None].expand(-1, -1, chosen.shape[2]))
        return self._under(q, k, v, heads, rows.gather(2, self.block[:, None].expand(-1, rows.shape[1], -1)))

    def local(
        self, q: Float[Tensor, "B N D"], k: Float[Tensor, "B N D"], v: Float[Tensor, "B N D"], heads: int
    ) -> Float[Tensor, "B N D"]:
        near = self.layout.near.to(q.device)
        return self._under(q, k, v, heads, near[self.block[:, :, None], self.place[:, None]])

    def _under(
        self,
        q: Float[Tensor, "B N D"],
        k: Float[Tensor, "B N D"],
        v: Float[Tensor, "B N D"],
        heads: int,
        seen: Bool[Tensor, "B N N"],
    ) -> Float[Tensor, "B N D"]:
        hidden = ~seen | self.pad[:, None]
        mask = torch.zeros((), dtype=q.dtype, device=q.device).expand(hidden.shape)
        return attend(q, k, v, heads, mask.masked_fill(hidden, torch.finfo(q.dtype).min)[:, None])


class Room(_Form):
    """Rows of a batch laid out block by block, (B,N,D) -> (B,num_blocks·size,D), with a mask of the real ones: whole
    blocks of keys are gathered at once. Its cost follows the grid, whatever is visible."""

    def __init__(self, place: Int[Tensor, "B N"], pad: Bool[Tensor, "B N"] | None, layout: BlockLayout) -> None:
        self.layout, self.rows, self.slots = layout, place.shape[0], layout.slots
        offset = torch.arange(self.rows, device=place.device)[:, None] * self.slots
        self.place = place + offset  # into (B·slots)
        if pad is not None:  # padding rows go to one spare row behind all others
            self.place = torch.where(pad, self.rows * self.slots, self.place)
        taken = torch.zeros(self.rows * self.slots + 1, dtype=torch.bool, device=place.device)
        taken[self.place.flatten()] = True
        self.taken = taken[:-1].view(self.rows, layout.num_blocks, layout.size)
        self.occupied = self.taken.any(-1)

    def enter(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B S D"]:
        out = x.new_zeros(self.rows * self.slots + 1, x.shape[-1])
        out = out.index_copy(0, self.place.flatten(), x.flatten(0, 1))
        return out[:-1].view(self.rows, self.slots, -1)

    def leave(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B N D"]:
        flat = x.reshape(self.rows * self.slots, -1)
        return flat.index_select(0, self.place.flatten().clamp_max(flat.shape[0] - 1)).view(*self.place.shape, -1)

    def means(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B K D"]:
        """Mean over the real cells of each block (0 for an empty one); unreal rows hold 0."""
        blocks = x.view(self.rows, self.layout.num_blocks, self.layout.size, -1)
        return blocks.sum(2) / self.taken.sum(2, keepdim=True).clamp_min(1)

    def selected(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int, count: int
    ) -> Float[Tensor, "B S D"]:
        best = self.best_blocks(q, k, heads, count)
        blocks, size = self.layout.num_blocks, self.layout.size
        row = (best + torch.arange(self.rows, device=q.device)[:, None, None] * blocks).flatten()

        def gather(x: Float[Tensor, "B S D"]) -> Float[Tensor, "K L D"]:
            whole = x.reshape(self.rows * blocks, -1).index_select(0, row)
            return whole.view(self.rows * blocks, best.shape[-1] * size, -1)

        real = self.taken.view(-1, size).index_select(0, row).view(self.rows * blocks, -1)
        return self._by_block(q, gather(k), gather(v), real, heads)

    def local(
        self, q: Float[Tensor, "B S D"], k: Float[Tensor, "B S D"], v: Float[Tensor, "B S D"], heads: int
    ) -> Float[Tensor, "B S D"]:
        halo = self.layout.halo.to(q.device)
        offset = torch.arange(self.rows, device=q.device)[:, None, None] * self.slots
        row = (halo.clamp_min(0) + offset).flatten()
        real = self.taken.flatten().index_select(0, row).view(self.rows, *halo.shape) & (halo >= 0)

        def gather(x: Float[Tensor, "B S D"]) -> Float[Tensor, "K L D"]:
            return x.flatten(0, 1).index_select(0, row).view(self.rows * halo.shape[0], halo.shape[1], -1)

        return self._by_block(q, gather(k), gather(v), real.flatten(0, 1), heads)

    def _by_block(
        self,
        q: Float[Tensor, "B S D"],
        k: Float[Tensor, "K L D"],
        v: Float[Tensor, "K L D"],
        real: Bool[Tensor, "K L"],
        heads: int,
    ) -> Float[Tensor, "B S D"]:
        mask = None if bool(real.all()) else key_mask(~real, None, q.dtype)
        return attend(q.view(-1, self.layout.size, q.shape[-1]), k, v, heads, mask).view_as(q)
