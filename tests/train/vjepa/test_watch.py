import pytest
import torch
from small_jepa import GRID, batch, phase

from polyspace.data.batch import VideoBatch
from polyspace.train.engine import PlainEngine
from polyspace.train.optim import build_adamw
from polyspace.train.vjepa.masking import MaskPlan
from polyspace.train.vjepa.questions import grid_goals
from polyspace.utils.monitor import effective_rank


@pytest.mark.parametrize(
    "changes", [{}, {"chunk_weight_until": 1e9}, {"energy": "smooth_l1"}, {"energy": "l2"}, {"still": 0.5}]
)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_predictor_that_knows_only_the_place_has_no_skill(changes, share):
    """Skill is 0 for the best constant per place, whatever the energy, its weights and the masks."""
    p, b = phase(masks=MaskPlan(share), **changes), batch(8, step=2)
    with torch.no_grad():
        known = p._encode_target(b.video)
        masks = p.settings.masks.draw(GRID, 0, 2, range(8))
        grid = grid_goals(known, changes.get("still", 0.0))
        asked = p.questions(known, grid, masks, 2)
        constant = grid.mean(0) if changes.get("energy") == "l2" else grid.median(0).values
        p.predictor.forward = lambda *_: constant[asked.index]
        assert p(b).metrics["skill"].item() == pytest.approx(0, abs=1e-5)


def test_few_clips_raise_no_alarm():
    metrics = {k: v.item() for k, v in phase()(batch(2)).metrics.items()}
    assert "effective_rank" not in metrics and phase().alarm(metrics) is None


def test_small_batches_are_gathered_until_they_say_something():
    p, video = phase(monitor_every=4), batch(12).video
    rows = [p(VideoBatch(video=video[4 * k : 4 * k + 4], place=(k + 5, 0))).metrics for k in range(3)]
    assert not any("effective_rank" in m or "chunks" in m for m in rows[:2])
    pooled = p.target.model.encode(video).pooled()
    assert torch.allclose(rows[2]["effective_rank"], effective_rank(pooled), atol=1e-4)
    alone = phase(monitor_every=4)(VideoBatch(video=video[8:], place=(7, 0))).metrics
    assert "chunks" in alone and "skill" not in alone


def test_micro_batches_are_gathered_too_and_their_metrics_averaged():
    p, video = phase(monitor_every=2), batch(12).video
    engine = PlainEngine(p, build_adamw(p, 1e-3, 0.0), torch.device("cpu"))
    parts = [VideoBatch(video=video[4 * k : 4 * k + 4], place=(3, 4 * k)) for k in range(3)]
    with torch.no_grad():
        expected = [phase(monitor_every=2)(part).metrics["energy"].item() for part in parts]
        pooled = p.target.model.encode(video).pooled()
        ranks = [effective_rank(pooled[:8]).item(), effective_rank(pooled[4:]).item()]
    metrics = engine.update(parts, 1e-4)[0].metrics
    assert metrics["energy"].item() == pytest.approx(sum(expected) / 3, rel=1e-4)
    assert metrics["effective_rank"].item() == pytest.approx(sum(ranks) / 2, rel=1e-3)
