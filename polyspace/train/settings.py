"""A phase's configuration as the loop wants it."""

from typing import Any

from polyspace.train.loop import FitSettings


def fit_settings(config: Any, seed: int, eval_every: int = 0) -> FitSettings:
    """Of any configuration that has the loop's keys (the learning rate's rise is its `warmup`)."""
    c = config
    return FitSettings(
        steps=c.steps,
        batch=c.batch,
        lr=c.lr,
        warmup_ratio=c.warmup,
        accumulate=c.accumulate,
        save_every=c.save_every,
        log_every=c.log_every,
        eval_every=eval_every,
        seed=seed,
        max_bad_steps=c.max_bad_steps,
    )
