import pytest
import torch
from small_hnet import clips, encoder

from polyspace.models.hnet.budget import merge_to
from polyspace.models.vjepa.vit import HNetViT


def random_runs(runs: int, dim: int = 5, clips: int = 3):
    size = torch.randint(1, 9, (clips, runs)).double()
    total = torch.randn(clips, runs, dim, dtype=torch.float64) * size[..., None]
    a = torch.arange(runs - 1).expand(clips, -1)
    extra = torch.randint(0, runs, (2, clips, 3 * runs))
    a, b = torch.cat([a, extra[0]], 1), torch.cat([a + 1, extra[1]], 1)
    return total, size, a, b, a != b


def greedy(total, size, a, b, there, goal: int) -> torch.Tensor:
    """The cheapest pair of all, one at a time, of a single clip."""
    label, total, size = torch.arange(len(size)), total.clone(), size.clone()
    while len(label.unique()) > goal:
        x, y = label[a], label[b]
        apart = (total[x] / size[x, None] - total[y] / size[y, None]).square().sum(-1)
        cost = (size[x] * size[y] / (size[x] + size[y])).sqrt() * apart
        cost[~there | (x == y)] = float("inf")
        low, high = sorted((int(x[cost.argmin()]), int(y[cost.argmin()])))
        total[low], size[low] = total[low] + total[high], size[low] + size[high]
        label[label == high] = low
    return label


@pytest.mark.parametrize("goal", [1, 2, 7, 20, 39, 40])
def test_merging_all_mutual_neighbours_at_once_gives_the_tree_of_one_at_a_time(goal):
    """Where every pair touches: with fewer edges a merge can bring cheaper neighbours, and the order counts."""
    size = torch.randint(1, 9, (3, 40)).double()
    total = torch.randn(3, 40, 2, dtype=torch.float64) * size[..., None]
    a, b = (x.expand(3, -1) for x in torch.triu_indices(40, 40, 1))
    there = torch.ones_like(a, dtype=torch.bool)
    goals, counts = torch.full((3,), goal), torch.full((3,), 40)
    ours = merge_to(goals, counts, total, size, (a, b, there))
    for row in range(3):
        theirs = greedy(total[row], size[row], a[row], b[row], there[row], goal)
        assert torch.equal(ours[row], theirs)


def test_only_what_touches_merges_and_each_clip_to_its_own_goal():
    total, size, a, b, there = random_runs(30)
    goals = torch.tensor([30, 11, 1])
    label = merge_to(goals, torch.full((3,), 30), total, size, (a, b, there))
    assert [len(row.unique()) for row in label] == goals.tolist()
    pairs = torch.arange(29).expand(3, -1), torch.arange(1, 30).expand(3, -1), torch.arange(29).expand(3, -1) % 10 != 9
    label = merge_to(torch.ones(3, dtype=torch.long), torch.full((3,), 30), total, size, pairs)
    assert torch.equal(label, (torch.arange(30) // 10 * 10).expand(3, -1))


def test_a_clip_merges_alike_whoever_else_is_in_the_batch():
    total, size, a, b, there = random_runs(60, clips=4)
    goals, counts = torch.tensor([7, 50, 59, 1]), torch.tensor([60, 60, 60, 60])
    together = merge_to(goals, counts, total, size, (a, b, there))
    for row in range(4):
        one = slice(row, row + 1)
        alone = merge_to(goals[one], counts[one], total[one], size[one], (a[one], b[one], there[one]))
        assert torch.equal(together[one], alone)


def test_chunks_of_a_budget_stay_even_where_neighbours_shade_into_each_other():
    """A colour ramp with noise: most alike first would leave one chunk of nearly everything."""
    ramp = torch.linspace(-1, 1, 32)[:, None, None] * torch.tensor([1.0, -0.5, 0.2])
    video = (ramp + 0.5 * torch.randn(1, 1, 32, 32, 3)).repeat(1, 6, 1, 1, 1)
    assert encoder()(video, num_chunks=6).sizes.max() <= 24  # of 48 cells


def test_where_content_decides_a_clip_has_its_share_of_chunks():
    free, shared = encoder(), encoder(runs_per_chunk=3.0, max_chunks=9)
    shared.load_state_dict(free.state_dict())
    video = torch.cat([clips(3), clips(1)[:, :1].expand(-1, 6, -1, -1, -1)])
    runs = free(video).num_chunks
    assert runs[3] == 16 and runs[:3].min() > 16
    assert torch.equal(shared(video).num_chunks, (runs / 3).ceil().long().clamp_max(9))
    assert torch.equal(shared.encode(video, capped=False).valid.sum(1), runs)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_pixels_that_are_no_numbers_come_to_an_end_and_leave_other_clips_alone(bad):
    model = HNetViT.from_preset("tiny", dim=32, depth=1, heads=2).eval()
    video = torch.randn(2, 6, 24, 24, 3)
    spoilt = video.clone()
    spoilt[1, 2:] = bad
    with torch.no_grad():
        for budget in (3, 7):
            plain, found = (model(x, num_chunks=budget) for x in (video, spoilt))
            assert torch.equal(found.tokens[0], plain.tokens[0]) and int(found.num_chunks[1]) <= budget
