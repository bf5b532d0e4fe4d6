"""The arms of bench/train_step.py: one pretraining update of H-Net V-JEPA, of the tubelet baseline, and of
transformers' V-JEPA 2 modules at the same ViT and predictor, on the same clips and masks.

All predict the latents of hidden space tubes by L1 against a moving average of their encoder, with nothing beside it
but the ratio loss that the gate of H-Net needs. transformers' own forward encodes hidden patches too and only then
takes them away; here they are dropped before its layers, as V-JEPA does, which is to its advantage.
"""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from polyspace.config import validate
from polyspace.data.batch import VideoBatch
from polyspace.data.moving import moving_clips, normalise
from polyspace.models.layers import Block
from polyspace.models.vjepa.vit import PRESETS
from polyspace.train.encoders import EncoderConfig, build_encoder
from polyspace.train.machine import make_machine
from polyspace.train.optim import build_adamw
from polyspace.train.pretrain import build_phase
from polyspace.train.vjepa.masking import MaskPlan
from polyspace.train.vjepa.pretrain_config import PretrainConfig

UNIT, UNIT_FRAMES, PREDICTOR_DEPTH, DECAY, RATE = 16, 2, 4, 0.999, 1e-4
ARMS = ("hnet", "tubelet", "transformers")
PARTS = {  # modules whose forward is timed: where they stand in the phase -> what they are called in the table
    "encoder.stem": "stem, visible cells",
    "encoder.routing": "routing, visible cells",
    "encoder.downsampler": "pooling, visible cells",
    "encoder.vit": "ViT, visible tokens",
    "target.model.stem": "target: stem",
    "target.model.routing": "target: routing",
    "target.model.downsampler": "target: pooling",
    "target.model.vit": "target: ViT",
    "predictor": "predictor",
}


def clips(batch: int, frames: int, size: int) -> Tensor:
    """Generated clips, normalised (B,T,H,W,3)."""
    return normalise(moving_clips(batch, 0, frames=frames, size=size).video, 0.45, 0.25)


def predictor_shape(preset: str) -> dict[str, int]:
    width = PRESETS[preset]["dim"] // 2
    return {"width": width, "depth": PREDICTOR_DEPTH, "heads": width // 32}


def ours(arch: str, preset: str, video: Tensor) -> tuple[Callable[[int], Any], nn.Module, dict[str, float]]:
    """What makes update number n, its phase, and seconds by part, which grow with every update."""
    machine = make_machine("cpu", "auto", "fp32", 1)
    torch.manual_seed(0)
    encoder = build_encoder(validate(EncoderConfig, {"arch": arch, "preset": preset, "unit": UNIT}))
    shape = {f"predictor_{k}": v for k, v in predictor_shape(preset).items()}
    plain = {"future_share": 0.0, "variance_weight": 0.0, "covariance_weight": 0.0, "ema": (DECAY, DECAY)}
    config = validate(PretrainConfig, {"batch": len(video), "steps": 100, "log_every": 1000} | shape | plain)
    engine = machine.engine(build_phase(encoder, config, 0), config)
    seconds: dict[str, float] = defaultdict(float)
    time_parts(engine.phase, seconds)
    time_calls(engine, seconds, {"backward": "backward", "step": "clip and AdamW"})

    def update(number: int) -> None:
        engine.update([VideoBatch(video=video, place=(number, 0))], RATE, len(video))
        start = time.perf_counter()
        engine.phase.after_update(number)
        seconds["moving average"] += time.perf_counter() - start

    return update, engine.phase, seconds


def time_parts(phase: nn.Module, seconds: dict[str, float]) -> None:
    for name, module in phase.named_modules():
        if name not in PARTS:
            continue
        title, began = PARTS[name], []

        def before(*_: Any, began: list[float] = began, **__: Any) -> None:
            began.append(time.perf_counter())

        def after(*_: Any, began: list[float] = began, title: str = title) -> None:
            seconds[title] += time.perf_counter() - began.pop()

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)


def time_calls(engine: Any, seconds: dict[str, float], names: dict[str, str]) -> None:
    for name, title in names.items():
        original = getattr(engine, name)

        def timed(*given: Any, original: Any = original, title: str = title) -> Any:
            start = time.perf_counter()
            out = original(*given)
            seconds[title] += time.perf_counter() - start
            return out

        setattr(engine, name, timed)


def theirs(preset: str, video: Tensor) -> tuple[Callable[[int], Any], nn.Module, dict[str, float]]:
    """The same update written with transformers' embeddings, layers and predictor."""
    from transformers import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder, VJEPA2Predictor

    shape, predictor = PRESETS[preset], predictor_shape(preset)
    config = VJEPA2Config(
        patch_size=UNIT,
        crop_size=video.shape[2],
        frames_per_clip=video.shape[1],
        tubelet_size=UNIT_FRAMES,
        hidden_size=shape["dim"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        mlp_ratio=4,
        pred_hidden_size=predictor["width"],
        pred_num_hidden_layers=predictor["depth"],
        pred_num_attention_heads=predictor["heads"],
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": VJEPA2Encoder(config), "predictor": VJEPA2Predictor(config)})
    target = copy.deepcopy(model["encoder"]).requires_grad_(False)
    optimizer = build_adamw(model, RATE, 0.04)
    pixels = video.permute(0, 1, 4, 2, 3)
    grid = (video.shape[1] // UNIT_FRAMES, video.shape[2] // UNIT, video.shape[3] // UNIT)
    plan = MaskPlan(future_share=0.0)

    def update(number: int) -> None:
        hidden = plan.draw(grid, 0, number, range(len(video))).hidden.flatten(1)
        seen, asked = (m.nonzero()[:, 1].unflatten(0, (len(video), -1)) for m in (~hidden, hidden))
        with torch.no_grad():
            known = target(pixels).last_hidden_state
            goal = F.layer_norm(gathered(known, asked), known.shape[-1:])
        encoder, guess = model["encoder"], model["predictor"]
        x = gathered(encoder.embeddings(pixels), seen)
        for layer in encoder.layer:
            x = layer(x, seen)[0]
        y, places = guess.embeddings(encoder.layernorm(x), [seen], [asked])
        for layer in guess.layer:
            y = layer(y, places)[0]
        loss = F.l1_loss(guess.proj(guess.layernorm(y)[:, seen.shape[1] :]), goal)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(encoder.parameters()), 1 - DECAY)

    return update, model, {}


def gathered(x: Tensor, index: Tensor) -> Tensor:
    """Rows (B,n,D) of x (B,N,D) by index (B,n)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def blocks(video: Tensor) -> tuple[Callable[[int], Any], nn.Module, dict[str, float]]:
    """ViT-B's blocks alone, forward and backward, on as many tokens as the clips have cells."""
    tokens = video.shape[1] // UNIT_FRAMES * (video.shape[2] // UNIT) * (video.shape[3] // UNIT)
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(PRESETS["base"]["dim"], PRESETS["base"]["heads"]) for _ in range(12)))
    x = torch.randn(len(video), tokens, PRESETS["base"]["dim"])

    def update(_: int) -> None:
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()

    return update, model, {}


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """FLOPs of forward and backward, attention included, which the CPU's fused kernel would hide."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def matmul_peak(seconds: float = 2.0) -> float:
    """Best FLOP/s of fp32 products of 2048² on all threads."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best, end = 0.0, time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2 * 2048**3 / (time.perf_counter() - start))
    return best
