"""One pass over pairs: samples, held-out parts, tokens on another grid."""

import torch

from polyspace.train.alignment.gathering import Gatherer, Reservoir, gather
from polyspace.train.alignment.pairs import Block
from polyspace.utils.checkpoint_io import load_torch, save_torch
from polyspace.utils.memory import LiveBytes
from polyspace.utils.moments import Moments

D, E = 6, 4


def clip_blocks(*sizes: int, held_every: int = 3):
    generator, start = torch.Generator().manual_seed(0), 0
    for n in sizes:
        x = torch.randn(n, D, generator=generator)
        held = (torch.arange(start, start + n) % held_every) == 0
        yield Block({"s": x, "a": 2 * x[:, :E], "b": x.flip(1)}, held)
        start += n


def test_a_stream_that_fits_is_kept_whole_and_in_order():
    r = Reservoir(10, 0)
    r.add(torch.arange(3))
    r.add(torch.arange(3, 8))
    assert torch.equal(r.rows()[0], torch.arange(8))


def test_a_longer_stream_leaves_a_uniform_sample_whose_parts_stay_aligned():
    counts = torch.zeros(40)
    for seed in range(300):
        r = Reservoir(8, seed)
        for part in torch.arange(40).split(7):
            r.add(part, part * 10)
        x, y = r.rows()
        assert len(x.unique()) == 8 and torch.equal(y, 10 * x)
        counts[x] += 1
    assert counts.min() > 30 and counts.max() < 95  # 60 each on average, standard deviation 7


def test_fitting_and_held_out_rows_are_apart_and_their_moments_are_those_of_all_rows():
    found = gather(clip_blocks(5, 1, 9), "s", ["a", "b"], rows=100)
    blocks = list(clip_blocks(5, 1, 9))
    x, y = (torch.cat([b.spaces[k] for b in blocks]) for k in ("s", "a"))
    held = torch.cat([b.held for b in blocks])
    assert found["a"].fit.n == int((~held).sum()) and found["a"].held.n == int(held.sum())
    torch.testing.assert_close(found["a"].fit.cov_xy(), Moments().update(x[~held], y[~held]).cov_xy())
    assert torch.equal(found["a"].rows[0], x[~held]) and torch.equal(found["a"].held_rows[1], y[held])
    assert found["a"].rows[0] is found["b"].rows[0]  # one copy of the student's rows


def token_block(clips: int, seed: int) -> Block:
    g = torch.Generator().manual_seed(seed)
    grid = torch.randn(clips, D, 2, 4, 4, generator=g)
    coarse = torch.nn.functional.avg_pool3d(grid, (1, 2, 2))
    fine = grid.flatten(2).transpose(1, 2)
    return Block({"s": fine, "a": 3 * coarse.flatten(2).transpose(1, 2)}, torch.arange(clips) % 2 == 1)


def test_tokens_meet_on_the_teachers_grid():
    grids = {"s": (2, 4, 4), "a": (2, 2, 2)}
    found = gather(iter([token_block(6, 0)]), "s", ["a"], grids, tokens_per_clip=5)["a"]
    assert found.fit.n == 15 and found.held.n == 15
    torch.testing.assert_close(3 * found.rows[0], found.rows[1])


def test_memory_does_not_grow_with_the_clips():
    def blocks(count: int):
        for i in range(count):
            yield token_block(16, i)

    grids = {"s": (2, 4, 4), "a": (2, 2, 2)}

    def peak(count: int) -> int:
        with LiveBytes() as live:
            gather(blocks(count), "s", ["a"], grids, rows=500, held_rows=100, tokens_per_clip=8)
        return live.peak

    assert peak(400) < 1.05 * peak(100)  # the rows of 6400 clips would be 2 MiB, their tokens 30


def test_a_pass_goes_on_from_its_state_bit_for_bit_wherever_it_stopped(tmp_path):
    grids = {"s": (2, 4, 4), "a": (2, 2, 2)}
    for blocks, given in (
        (list(clip_blocks(5, 1, 9, 4)), (["a", "b"], None)),
        ([token_block(6, seed) for seed in range(4)], (["a"], grids)),
    ):
        made = {"rows": 8, "held_rows": 4, "tokens_per_clip": 5}  # fewer than there are: the samples are random
        whole = gather(iter(blocks), "s", *given, **made)
        for stop in range(5):
            first, second = (Gatherer("s", *given, **made) for _ in range(2))
            for block in blocks[:stop]:
                first.add(block)
            save_torch(tmp_path / "state.pt", first.state())
            second.load(load_torch(tmp_path / "state.pt"))
            for block in blocks[stop:]:
                second.add(block)
            for name, found in second.result().items():
                for part in ("fit", "held"):
                    ours, theirs = getattr(found, part).state(), getattr(whole[name], part).state()
                    assert ours.keys() == theirs.keys() and all(
                        torch.equal(torch.as_tensor(ours[k]), torch.as_tensor(theirs[k])) for k in ours
                    )
                pairs = zip(found.rows + found.held_rows, whole[name].rows + whole[name].held_rows, strict=True)
                assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
