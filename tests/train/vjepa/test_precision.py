"""bf16 autocast trains as fp32 does: the same curve but for its rounding, and everything that is kept in fp32."""

from functools import lru_cache

import pytest
import torch
from small_jepa import phase

from polyspace.data.batch import VideoBatch
from polyspace.data.moving import moving_clips, normalise
from polyspace.train.engine import PlainEngine
from polyspace.train.optim import build_adamw
from polyspace.train.vjepa.masking import MaskPlan

UPDATES = 32
BAND = 0.01  # of the loss, at every update: 0.5 % at most was measured; another order of clips gives 6 to 9 %


@lru_cache(maxsize=4)
def trained(precision: str, arch: str) -> tuple[PlainEngine, tuple[float, ...]]:
    p = phase(arch, total_steps=UPDATES, masks=MaskPlan(0.5), monitor_every=1000)
    engine = PlainEngine(p, build_adamw(p, 2e-3, 0.04), torch.device("cpu"), precision=precision)
    clips, losses = normalise(moving_clips(16, 0, frames=6, size=24).video), []
    for step in range(UPDATES):
        batch = VideoBatch(video=clips[torch.arange(4) + 4 * step % 16], place=(step, 0))
        output, sound = engine.update([batch], 2e-3)
        assert sound
        p.after_update(step)
        losses.append(output.loss.item())
    return engine, tuple(losses)


@pytest.mark.parametrize("arch", ["tubelet", "hnet"])
def test_bf16_stays_within_its_band_of_fp32_and_both_learn(arch):
    exact, rounded = (torch.tensor(trained(precision, arch)[1]) for precision in ("fp32", "bf16"))
    assert not torch.equal(exact, rounded)
    assert exact[-4:].mean() < 0.9 * exact[:4].mean() and rounded[-4:].mean() < 0.9 * rounded[:4].mean()
    assert ((exact - rounded).abs() / exact).max() < BAND


@pytest.mark.parametrize("arch", ["tubelet", "hnet"])
def test_weights_moving_average_and_optimizer_are_kept_in_fp32_under_bf16(arch):
    engine, _ = trained("bf16", arch)
    kept = {**engine.model_state(), **engine.optimizer_state()}
    assert {v.dtype for v in kept.values() if v.is_floating_point()} == {torch.float32}
    assert any(name.startswith("target.model.") for name in kept) and any(n.startswith("exp_avg_sq/") for n in kept)


def test_the_moving_average_under_bf16_is_that_of_the_weights_to_fp32():
    """A bf16 average would stand still at a decay like this one."""
    p = phase("tubelet", ema=(0.9995, 0.9995), total_steps=UPDATES)
    engine = PlainEngine(p, build_adamw(p, 1e-4, 0.0), torch.device("cpu"), precision="bf16")
    online, target = (next(iter(m.parameters())) for m in (p.encoder, p.target.model))
    expected = target.clone()
    clips = normalise(moving_clips(4, 0, frames=6, size=24).video)
    for step in range(3):
        engine.update([VideoBatch(video=clips, place=(step, 0))], 1e-4)
        p.after_update(step)
        expected = expected.lerp(online.detach(), 1 - 0.9995)
    assert torch.equal(target, expected) and not torch.equal(target, online)
