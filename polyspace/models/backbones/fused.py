"""Parts of transformers' video models replaced by the same function in fewer passes over memory.

Weights, names in the state dict and results stay (to rounding); what goes is time that is not arithmetic. Shares are
of a bf16 forward on one CPU thread: ViViT's activation written out in six operations (30 %), TimeSformer's attention
with its probabilities in memory (20 %), V-JEPA 2's rotations made anew in every layer (15 %), and patches projected as
a strided convolution (2–7 %).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyspace.models.layers import attend


def fuse(model: nn.Module) -> nn.Module:
    """Replace, in place, every part of `model` that has a quicker form; returns the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            quicker = _quicker(child)
            if quicker is not None:
                setattr(parent, name, quicker)
    rotations: dict[int, Rotation] = {}  # layers of one head width share a table
    for module in model.modules():
        if type(module).__name__ == "VJEPA2RopeAttention":
            attention: Any = module
            attention.apply_rotary_embeddings = rotations.setdefault(
                attention.attention_head_size, Rotation(type(attention), attention)
            )
    return model


def _quicker(module: nn.Module) -> nn.Module | None:
    kind = type(module).__name__
    if kind in ("FastGELUActivation", "NewGELUActivation"):  # both are the tanh form of GELU
        return nn.GELU(approximate="tanh")
    if kind == "TimesformerSelfAttention":
        return FusedAttention(module)
    if isinstance(module, nn.Conv2d | nn.Conv3d) and _cuts_into_patches(module):
        return PatchProjection(module)
    return None


def _cuts_into_patches(conv: nn.Conv2d | nn.Conv3d) -> bool:
    alone = conv.groups == 1 and set(conv.dilation) == {1} and set(conv.padding) == {0}
    return alone and conv.stride == conv.kernel_size


class PatchProjection(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product: (B,C,*pixels) -> (B,D,*patches).

    Pixels that fill no whole patch are dropped, as the convolution does.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias, self.kernel_size = conv.weight, conv.bias, conv.kernel_size

    def forward(self, x: Float[Tensor, "B C *pixels"]) -> Float[Tensor, "B D *patches"]:
        for dim, size in enumerate(self.kernel_size, start=2):
            x = x.narrow(dim, 0, x.shape[dim] // size * size)
        for axis, size in enumerate(self.kernel_size):  # each axis of pixels -> (patches, pixels of one)
            x = x.unflatten(2 + 2 * axis, (-1, size))
        axes = len(self.kernel_size)
        patches, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        x = x.permute(0, *patches, 1, *inside).flatten(1 + axes)  # -> (B,*patches,C·pixels)
        return F.linear(x, self.weight.flatten(1), self.bias).movedim(-1, 1)


class FusedAttention(nn.Module):
    """TimeSformer's self-attention by SDPA; it has no probabilities to give."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.heads = attention.qkv, attention.num_heads

    def forward(self, x: Float[Tensor, "B N D"], output_attentions: bool = False) -> tuple[Float[Tensor, "B N D"]]:
        if output_attentions:
            raise ValueError("this attention keeps no probabilities")
        q, k, v = self.qkv(x).chunk(3, -1)
        return (attend(q, k, v, self.heads),)


class Rotation:
    """V-JEPA 2's rotation of queries and keys (B,H,N,E) by their places on the grid, from a table made once.

    It is linear, x·cos + (neighbours exchanged)·sin with a sign, so two probes read the table off the model's own
    function: it is right for whatever that function does, which no published formula of rotary codes is (it lays out
    angles by halves and exchanges neighbours). The table is made in fp64 and then rounded, where the original under
    autocast rounds the angles first (largest error of a unit normal query .020 against .047).
    """

    def __init__(self, kind: Any, attention: Any) -> None:
        self._rotate, self._places = kind.apply_rotary_embeddings, kind.get_position_ids
        self._attention = attention
        self._tables: dict[tuple[torch.device, torch.dtype, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Float[Tensor, "B H N E"], _: object) -> Float[Tensor, "B H N E"]:
        cos, sin = self._table(x)
        return torch.addcmul(x * cos, x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2), sin)

    def _table(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin (N,E) in x's type, on its device."""
        key = (x.device, x.dtype, x.shape[2])
        if key not in self._tables:
            with torch.inference_mode(False):
                ones = torch.ones(1, 1, *x.shape[2:], dtype=torch.float64, device=x.device)
                turns = ones.clone()
                turns[..., 1::2] = -1
                places = self._places(self._attention, ones[0])
                even = self._rotate(self._attention, ones, places)[0, 0]
                odd = turns[0, 0] * self._rotate(self._attention, turns, places)[0, 0]
                self._tables[key] = ((even + odd) / 2).to(x.dtype), ((even - odd) / 2).to(x.dtype)
        return self._tables[key]
