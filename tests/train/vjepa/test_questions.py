from dataclasses import replace

import pytest
import torch
from small_jepa import GRID, batch, phase

from polyspace.data.batch import VideoBatch
from polyspace.train.vjepa.jepa import Weights
from polyspace.train.vjepa.masking import MaskPlan, Masks
from polyspace.train.vjepa.questions import grid_goals, grid_questions, without_still


def test_hidden_pixels_reach_the_target_only():
    p = phase(masks=MaskPlan(1.0, horizon=0))
    b = batch(step=4)
    hidden = p.settings.masks.draw(GRID, 0, 4, range(6)).hidden
    area = hidden.repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)[..., None]
    other = VideoBatch(video=torch.where(area, torch.randn_like(b.video), b.video), place=b.place)
    seen = []
    p.predictor.register_forward_hook(lambda _m, _i, out: seen.append(out))
    first, second = p(b), p(other)
    assert torch.equal(seen[0], seen[1])
    assert first.loss != second.loss


def test_the_chunk_mode_asks_for_chunks_that_are_hidden_altogether():
    p = phase(target="chunk")
    b = batch(step=1)
    out = p(b)
    assert out.loss.isfinite() and out.metrics["energy"] > 0
    masks = p.settings.masks.draw(GRID, 0, 1, range(6))
    known = p._encode_target(b.video)
    asked = p.questions(known, None, masks, 1)
    seen = (known.chunks.assignment * (~masks.hidden).flatten(1)[..., None]).sum(1)
    assert asked.valid.any() and not (asked.valid & (seen > 1e-6)).any() and not (asked.valid & ~known.valid).any()
    with pytest.raises(ValueError, match="chunk encoder"):
        phase("tubelet", target="chunk")


@pytest.mark.parametrize(
    ("power", "expected"), [(0.0, (2, 2, 2)), (1.0, (2, 1.2, 1 / 3)), (0.5, (2, 1 + 0.2**0.5, 2 / 6**0.5))]
)
def test_a_hidden_cell_weighs_alike_or_as_its_share_of_its_chunk(power, expected):
    """Two of six steps are asked for. Place 0 changes at every step, place 1 at the last one, the others never."""
    p = phase()
    steps, places = GRID[0], GRID[1] * GRID[2]
    hidden = torch.zeros(1, *GRID, dtype=torch.bool)
    hidden[:, 4:] = True
    owner = torch.arange(steps * places) % places + steps
    owner[::places] = torch.arange(steps)
    owner[-places + 1] = steps
    chosen = torch.nn.functional.one_hot(owner)[None].float()
    sizes = chosen.sum(1)
    with torch.no_grad():
        known = p.target.model.encode(batch(1).video)
        changes = {"sizes": sizes, "valid": sizes > 0, "tokens": torch.randn(*sizes.shape, 32)}
        changes["centroids"] = torch.zeros(*sizes.shape, 3)
        chunks = replace(known.chunks, assignment=chosen, **changes)
        known = replace(known, chunks=chunks, **changes)
        asked = grid_questions(known, grid_goals(known), Masks(hidden, hidden, "future"), False, power)
    for place in range(places):
        weight = asked.hidden_weight[0][asked.index[0] % places == place]
        assert weight.sum().item() == pytest.approx(expected[min(place, 2)])


@pytest.mark.parametrize(("until", "powers"), [(0.5, (1.0, 0.5, 0.0, 0.0)), (0.0, (0, 0, 0, 0)), (1e9, (1, 1, 1, 1))])
def test_weights_by_chunk_fade_out(until, powers, monkeypatch):
    given, p = [], phase(chunk_weight_until=until, total_steps=100)
    with torch.no_grad():
        known = p._encode_target(batch(1).video)
    masks = p.settings.masks.draw(GRID, 0, 0, [0])

    def spy(known, goals, masks, context, power):
        given.append(power)
        return grid_questions(known, goals, masks, context, power)

    monkeypatch.setattr("polyspace.train.vjepa.jepa.grid_questions", spy)
    for step in (0, 25, 50, 99):
        p.questions(known, grid_goals(known), masks, step)
    assert given == pytest.approx(powers)


def test_visible_cells_weigh_by_their_distance_and_come_in_by_a_ramp():
    """One step hidden of six: cells one, two … steps before it weigh 1, 1/√2 …"""
    p = phase("tubelet", masks=MaskPlan(1.0), weights=Weights(context=0.5), context_ramp=(0.2, 0.6), total_steps=10)
    hidden = torch.zeros(1, *GRID, dtype=torch.bool)
    hidden[:, 5] = True
    with torch.no_grad():
        known = p._encode_target(batch(1).video)
    asked = grid_questions(known, grid_goals(known), Masks(hidden, hidden, "future"), True, 0.0)
    steps = asked.index[0] // 9
    expected = torch.where(steps < 5, (5 - steps).float().rsqrt(), 0)
    assert torch.allclose(asked.seen_weight[0], expected) and torch.equal(asked.hidden_weight[0] > 0, steps == 5)
    for step, ramp in ((0, 0.0), (2, 0.0), (3, 0.25), (6, 1.0), (9, 1.0)):
        out = p(batch(step=step))
        expected = out.metrics["energy"] + 0.5 * ramp * out.metrics["context"]
        assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_goals_without_what_stands_still():
    """Two steps of one place: half of their mean is taken off each, then clips and places are centred and scaled."""
    goal = torch.tensor([[[2.0, 0.0], [4.0, 0.0]], [[0.0, 2.0], [0.0, -2.0]]])  # (2 clips, 2 steps · 1 place, 2 dims)
    moving = torch.tensor([[[0.5, 0.0], [2.5, 0.0]], [[0.0, 2.0], [0.0, -2.0]]]) - torch.tensor([0.75, 0.0])
    assert torch.allclose(without_still(goal, 2, 0.5), moving / moving.std(), atol=1e-6)
    still = torch.ones(3, 4, 2) * torch.randn(3, 1, 2)
    assert torch.allclose(without_still(still, 4, 1.0), torch.zeros(3, 4, 2))


def test_whole_chunks_are_predicted_alike_whoever_else_is_in_the_batch():
    p, b = phase(target="chunk"), batch(4, step=1)
    seen = []
    p.predictor.register_forward_hook(lambda _m, _i, out: seen.append(out))
    p(b)
    p(VideoBatch(video=b.video[:1], place=b.place))
    count = seen[1].shape[1]
    assert torch.allclose(seen[0][:1, :count], seen[1], atol=1e-5)
