"""A world model on latents: what the frames' latents become under actions.

Each frame is encoded for itself (a clip would let chunks cross "now" and leak the future), handed back to the grid of
cells and normalised. The predictor is causal in time: a frame's cells see frames and actions up to their own.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyspace.models.keypoints import ActionKeypoints
from polyspace.models.layers import Block, attend, join_heads, sincos_code, split_heads
from polyspace.models.vjepa.vit import HNetViT, TubeletViT


def frame_mask(frames: int, queries: int, keys: int, like: Tensor) -> Float[Tensor, "1 1 N M"]:
    """Additive mask for `queries` and `keys` tokens a frame: 0 where the key's frame is not after the query's."""
    q = torch.arange(frames, device=like.device).repeat_interleave(queries)
    k = torch.arange(frames, device=like.device).repeat_interleave(keys)
    later = k[None] > q[:, None]
    return like.new_zeros(later.shape).masked_fill(later, torch.finfo(like.dtype).min)[None, None]


class FrameCausalAttention(nn.Module):
    """Self-attention of (B,T·N,D) under a mask from `frame_mask`, each head with a place that it looks at.

    logit += −β_h·|x_q + μ_h + W_h·a − x_k|² over rows and columns: a head looks around an offset μ_h (at first the four
    neighbours in turn) that the frame's action moves, so that "this cell will hold what lies over there now" needs not
    be learned anew for every place. The square is spread over three more dims of queries and keys.
    """

    def __init__(self, dim: int, heads: int, action_dim: int, sharpness: float = 0.5) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        around = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
        self.offset = nn.Parameter(around.repeat(-(-heads // 4), 1)[:heads])
        self.sharpness = nn.Parameter(torch.full((heads,), sharpness))
        self.follow = nn.Linear(action_dim, 2 * heads, bias=False)
        nn.init.zeros_(self.follow.weight)

    def forward(
        self,
        x: Float[Tensor, "B M D"],
        mask: Float[Tensor, "1 1 M M"],
        places: Float[Tensor, "N 2"],
        actions: Float[Tensor, "B T A"],
    ) -> Float[Tensor, "B M D"]:
        b, t, n = len(x), actions.shape[1], len(places)
        q, k, v = (split_heads(y, self.heads) for y in self.qkv(x).chunk(3, -1))  # (B,H,T·N,E)
        aim = self.follow(actions).view(b, t, 1, self.heads, 2) + self.offset + places[:, None]
        beta = self.sharpness.clamp_min(0.0)
        scale = (q.shape[-1] + 3) ** 0.5
        aim = (2 * beta[:, None] * aim).flatten(1, 2).transpose(1, 2)  # (B,H,T·N,2)
        own = torch.cat([aim, -beta[None, :, None, None].expand(b, -1, t * n, 1)], -1)
        there = torch.cat([places, places.square().sum(1, keepdim=True)], 1).repeat(t, 1)
        q = torch.cat([q * (scale / q.shape[-1] ** 0.5), own * scale], -1)
        k = torch.cat([k, there.expand(b, self.heads, -1, -1)], -1)
        v = F.pad(v, (0, 3))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[..., :-3]
        return self.out(join_heads(y))


class CrossAttentionFuser(nn.Module):
    """x + attention(LN x, action tokens): chunk or cell embeddings look at the actions of their frame and before.

    An action becomes `tokens` key-value tokens with the code of its time; a learned token that says nothing lets a cell
    look away.
    """

    def __init__(self, dim: int, heads: int, action_dim: int, tokens: int = 4) -> None:
        super().__init__()
        self.dim, self.heads, self.tokens = dim, heads, tokens
        self.norm, self.query = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.read = nn.Sequential(nn.Linear(action_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, tokens * dim))
        self.nothing = nn.Parameter(torch.zeros(1, 1, dim))
        self.key_value, self.out = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B T N D"], actions: Float[Tensor, "B T A"]) -> Float[Tensor, "B T N D"]:
        b, t, n, d = x.shape
        time = torch.zeros(t, 3, device=x.device, dtype=x.dtype)
        time[:, 0] = torch.arange(t, device=x.device)
        said = self.read(actions).view(b, t, self.tokens, d) + sincos_code(time, d)[:, None]
        keys, values = self.key_value(torch.cat([self.nothing.expand(b, -1, -1), said.flatten(1, 2)], 1)).chunk(2, -1)
        mask = F.pad(frame_mask(t, n, self.tokens, x), (1, 0))
        y = attend(self.query(self.norm(x)).flatten(1, 2), keys, values, self.heads, mask)
        return x + self.out(y).view(b, t, n, d)


class ActionPredictor(nn.Module):
    """Normalised latents of frames 0 … T−1 and the actions taken there -> latents of frames 1 … T.

    Residual on the last frame with a last map of zeros: it starts as "nothing changes". Actions are divided by `scale`,
    a buffer, their standard deviation in the training data.
    """

    scale: Tensor

    def __init__(
        self, dim: int, action_dim: int, width: int = 96, depth: int = 3, heads: int = 4, action_tokens: int = 4
    ) -> None:
        super().__init__()
        self.dim, self.action_dim, self.width = dim, action_dim, width
        self.register_buffer("scale", torch.ones(action_dim))
        self.into = nn.Linear(dim, width)
        self.fusers = nn.ModuleList(
            [CrossAttentionFuser(width, heads, action_dim, action_tokens) for _ in range(depth)]
        )
        self.blocks = nn.ModuleList(
            [Block(width, heads, attention=FrameCausalAttention(width, heads, action_dim)) for _ in range(depth)]
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, latents: Float[Tensor, "B T N D"], actions: Float[Tensor, "B T A"], places: Float[Tensor, "N 3"]
    ) -> Float[Tensor, "B T N D"]:
        """`places`: (0, row, column) of the cells. Output t is the latent of frame t + 1, given frames and actions
        up to t."""
        if actions.shape[-1] != self.action_dim:
            raise ValueError(f"actions have {actions.shape[-1]} dims, the predictor was made for {self.action_dim}")
        b, t, n, _ = latents.shape
        when = torch.arange(t, device=latents.device, dtype=places.dtype)[:, None, None] * places.new_tensor([1, 0, 0])
        x = self.into(latents) + sincos_code(places + when, self.width).to(latents.dtype)
        mask = frame_mask(t, n, n, x)
        actions = (actions / self.scale).to(x.dtype)
        for fuser, block in zip(self.fusers, self.blocks, strict=True):
            x = block(fuser(x, actions).flatten(1, 2), mask, places[:, 1:], actions).view(b, t, n, -1)
        y = latents + self.out(self.norm(x))
        return F.layer_norm(y, y.shape[-1:])

    def rollout(
        self,
        latents: Float[Tensor, "B C N D"],
        past: Float[Tensor, "B P A"],
        actions: Float[Tensor, "B S A"],
        places: Float[Tensor, "N 3"],
        history: int,
    ) -> Float[Tensor, "B S N D"]:
        """Latents after each of S actions, on its own predictions: from C known frames and the P = C − 1 actions
        between them. At most the last `history` frames are looked at."""
        known, done, out = latents, past, []
        for s in range(actions.shape[1]):
            done = torch.cat([done, actions[:, s : s + 1]], 1)
            window = min(history, known.shape[1])
            out.append(self(known[:, -window:], done[:, -window:], places)[:, -1:])
            known = torch.cat([known, out[-1]], 1)
        return torch.cat(out, 1)


class WorldModel(nn.Module):
    """A frozen encoder and an action predictor: frames to latents, latents and actions to future latents.

    Latents are the mean of the encoder's `layers` last layers (the input counts as the first; None: all), which is what
    pretraining predicts; the last layer alone mixes every cell with the whole frame. `history`: frames looked back at.
    `keypoints` tell a place from latents, where they were trained.
    """

    def __init__(
        self,
        encoder: HNetViT | TubeletViT,
        predictor: ActionPredictor,
        history: int,
        layers: int | None = None,
        keypoints: ActionKeypoints | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.predictor, self.history = encoder.requires_grad_(False).eval(), predictor, history
        self.keypoints = keypoints
        self.layers = layers or len(encoder.vit.blocks) + 1

    def train(self, mode: bool = True) -> "WorldModel":
        """The encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B N D"]:
        """Normalised latents of the cells of single frames; each is shown as a step that stands still."""
        still = frames[:, None].expand(-1, self.encoder.unit_frames, -1, -1, -1)
        y = self.encoder.encode(still, layers=self.layers).on_grid().float()
        return F.layer_norm(y, y.shape[-1:])

    def places(self, height: int, width: int, like: Tensor) -> Float[Tensor, "N 3"]:
        """(0, row, column) of the cells of frames of so many pixels."""
        rows, columns = height // self.encoder.unit, width // self.encoder.unit
        at = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
        return at.to(like.device, torch.float32)
