import torch
from small_jepa import GRID, batch, phase

from polyspace.data.batch import VideoBatch
from polyspace.train.vjepa.masking import MaskPlan


def test_a_mask_is_a_function_of_seed_step_and_place():
    for plan in (MaskPlan(1.0), MaskPlan(0.0), MaskPlan(0.5)):
        whole = plan.draw(GRID, 0, 7, range(8))
        part = plan.draw(GRID, 0, 7, [5, 6, 7])
        assert whole.kind == part.kind
        assert torch.equal(whole.hidden[5:], part.hidden) and torch.equal(whole.asked[5:], part.asked)
    tubes = [MaskPlan(0.0).draw((6, 8, 8), 0, step, [0]).hidden for step in range(4)]
    assert not all(torch.equal(tubes[0], other) for other in tubes[1:])


def test_a_hidden_future_has_a_past_and_is_asked_up_to_the_horizon():
    for step in range(20):
        m = MaskPlan(1.0, horizon=2).draw(GRID, 0, step, range(2))
        seen = int((~m.hidden[0, :, 0, 0]).sum())
        assert 1 <= seen <= 5 and m.hidden[0, seen:].all() and not m.hidden[0, :seen].any()
        assert m.asked[0].sum() == 9 * min(2, 6 - seen) and not (m.asked & ~m.hidden).any()


def test_tubes_hide_the_same_number_of_whole_columns_in_every_clip():
    m = MaskPlan(0.0, tube_ratios=(0.75,)).draw((4, 8, 8), 0, 1, range(5))
    assert (m.hidden.flatten(1).sum(1) == 4 * 48).all()
    assert torch.equal(m.hidden[:, 0], m.hidden[:, 3])
    assert not torch.equal(m.hidden[0], m.hidden[1])


def test_a_clip_that_is_left_out_shifts_no_other_clips_mask():
    p, b = phase("tubelet", masks=MaskPlan(0.0)), batch(4, step=1)
    drawn = []
    p.encoder.stem.register_forward_pre_hook(lambda _m, args: drawn.append(args[1]))
    p(b)
    p(VideoBatch(video=b.video[[0, 2, 3]], place=b.place, rows=(0, 2, 3)))
    assert torch.equal(drawn[0][[0, 2, 3]], drawn[1])


def test_tubes_around_chunks_hide_where_chunks_are_and_as_many_columns():
    plan, grid = MaskPlan(future_share=0.0, tube_ratios=(0.5,)), (2, 8, 8)
    chunks = torch.zeros(3, 8, 8)
    chunks[0, 2, 2] = chunks[1, 7, 0] = chunks[2, 5, 5] = 3.0
    drawn = [plan.draw(grid, 0, step, range(3), chunks).hidden[:, 0] for step in range(20)]
    assert all((hidden.flatten(1).sum(1) == 32).all() for hidden in drawn)
    often = torch.stack(drawn).float().mean(0)
    assert often[0, 1:4, 1:4].min() == 1 and often[1, 6:, :2].min() == 1 and often[2, 4:7, 4:7].min() == 1
    assert 0.2 < often[0, 5:, 5:].mean() < 0.7


def test_tubes_around_no_chunk_at_all_are_random():
    plan = MaskPlan(future_share=0.0, tube_ratios=(0.5,))
    hidden = plan.draw((2, 4, 4), 0, 0, range(2), torch.zeros(2, 4, 4)).hidden
    assert (hidden.flatten(1).sum(1) == 16).all()
