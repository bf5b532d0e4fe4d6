"""Hold-out, metrics, padding, seeds."""

import math
import subprocess
import sys

import pytest
import torch

from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.holdout import hold_out, keep_fraction
from polyspace.utils.metrics import (
    average_precision,
    bootstrap_interval,
    confusion_matrix,
    knn_overlap,
    mean_class_accuracy,
    recall_at,
    seed_interval,
    top_k_hits,
    wilson_interval,
)
from polyspace.utils.misc import get_device, masked_mean, pad_stack, set_seed, straight_through


def test_a_source_video_lies_wholly_on_one_side_and_every_class_is_shared_out():
    groups = [f"film{i // 3}" for i in range(90)]
    labels = [i // 30 for i in range(90)]
    mask = hold_out(groups, labels, 0.2, seed=1)
    for name in set(groups):
        assert len({mask[i].item() for i, g in enumerate(groups) if g == name}) == 1
    for label in range(3):
        assert mask[[i for i in range(90) if labels[i] == label]].double().mean() == pytest.approx(0.2)


def test_the_choice_depends_on_names_not_on_order():
    groups, labels = [f"g{i}" for i in range(20)], [i % 2 for i in range(20)]
    mask = hold_out(groups, labels, 0.3)
    order = torch.randperm(20).tolist()
    shuffled = hold_out([groups[i] for i in order], [labels[i] for i in order], 0.3)
    assert torch.equal(shuffled, mask[order])
    assert not torch.equal(hold_out(groups, labels, 0.3, seed=5), mask)


def test_no_class_loses_its_last_video_to_a_large_share():
    mask = hold_out(list("abcdef"), [0, 0, 1, 1, 1, 1], 0.9)
    assert not mask[:2].all() and not mask[2:].all() and mask.sum() == 4


def test_a_class_of_one_video_stays_in_training_and_nothing_to_hold_out_is_an_error():
    mask = hold_out(["a", "b", "c", "only"], [0, 0, 0, 1], 0.3)
    assert not mask[3]
    assert hold_out(["a", "b", "c", "d"], [0, 1, 2, 3], 0.5).sum() == 2
    with pytest.raises(UserError, match="held out"):
        hold_out(["a", "a"], [0, 1], 0.5)


def test_scores_of_a_case_worked_by_hand():
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [5, 4, 3]])
    labels = torch.tensor([0, 2, 2, 2])
    assert top_k_hits(logits, labels, 1).tolist() == [1, 0, 1, 0]
    assert top_k_hits(logits, labels, 2).tolist() == [1, 1, 1, 0]
    assert mean_class_accuracy(top_k_hits(logits, labels, 1), labels) == pytest.approx((1 + 1 / 3) / 2)
    assert confusion_matrix(logits.argmax(1), labels, 3).tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 1]]


def test_ties_count_against_the_label():
    assert top_k_hits(torch.zeros(1, 4), torch.tensor([0]), 1).item() == 0


def test_the_interval_over_runs_is_the_t_interval():
    stats = pytest.importorskip("scipy.stats")
    for n in (2, 5, 12, 31):
        x = torch.rand(n, generator=torch.Generator().manual_seed(n)).double().numpy()
        expected = stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x))
        assert seed_interval(x.tolist()) == pytest.approx((x.mean(), *expected), rel=1e-3)
    with pytest.raises(ValueError, match="two"):
        seed_interval([0.5])


def test_bootstrap_interval_has_the_width_of_the_binomial():
    hits = (torch.arange(400) < 300).double()
    low, high = bootstrap_interval(hits)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.01) and high == pytest.approx(0.75 + half, abs=0.01)


def test_knn_overlap_is_one_for_a_rotated_space_and_chance_for_noise():
    x = torch.randn(200, 16)
    q, _ = torch.linalg.qr(torch.randn(16, 16))
    assert knn_overlap(x, 2 * x @ q) == pytest.approx(1.0)
    assert knn_overlap(x, torch.randn(200, 16)) == pytest.approx(10 / 199, abs=0.03)


def test_padded_items_never_enter_a_mean():
    x, valid = pad_stack([torch.ones(2, 3), torch.full((4, 3), 2.0), torch.zeros(0, 3)])
    assert x.shape == (3, 4, 3) and valid.sum(1).tolist() == [2, 4, 0]
    x[0, 2:] = float("nan")
    assert masked_mean(x, valid)[:, 0].tolist() == [1.0, 2.0, 0.0]


def test_straight_through_has_the_hard_value_and_the_soft_gradient():
    soft = torch.tensor([0.3, 0.8], requires_grad=True)
    out = straight_through((soft > 0.5).float(), soft)
    out.sum().backward()
    assert out.tolist() == [0.0, 1.0] and soft.grad.tolist() == [1.0, 1.0]


def test_seeds_repeat_and_devices_are_checked():
    a = (set_seed(3), torch.rand(2))[1]
    b = (set_seed(3), torch.rand(2))[1]
    assert torch.equal(a, b)
    assert get_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="--device warp"):
        get_device("warp")


def test_suggestions_name_the_nearest_word_or_all_of_them():
    assert did_you_mean("videome", ["videomae", "vivit"]) == "; did you mean 'videomae'?"
    assert did_you_mean("zzz", ["b", "a"]) == "; known: a, b"


def test_lazy_names_of_misc_are_the_real_ones():
    for room, name in (("losses", "nt_xent_loss"), ("planning", "CEMPlanner")):
        code = f"import sys, polyspace.utils.misc as m; assert 'polyspace.{room}' not in sys.modules; m.{name}"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_fraction_of_labels_keeps_every_class_and_grows_by_adding():
    labels = [0] * 40 + [1] * 10 + [2] * 3
    among = torch.ones(53, dtype=torch.bool)
    among[:20] = False
    counts = {}
    for fraction in (0.01, 0.1, 0.5, 1.0):
        kept = keep_fraction(labels, among, fraction, seed=4)
        assert not (kept & ~among).any()
        counts[fraction] = [int((kept & (torch.tensor(labels) == c)).sum()) for c in range(3)]
    assert counts == {0.01: [1, 1, 1], 0.1: [2, 1, 1], 0.5: [10, 5, 2], 1.0: [20, 10, 3]}
    few, many = (keep_fraction(labels, among, f, seed=4) for f in (0.1, 0.5))
    assert not (few & ~many).any()
    assert not torch.equal(many, keep_fraction(labels, among, 0.5, seed=5))


def test_wilson_intervals_by_published_examples():
    low, high = wilson_interval(0, 10)
    assert low == pytest.approx(0.0, abs=1e-9) and high == pytest.approx(0.2775, abs=1e-4)  # Brown, Cai, DasGupta 2001
    low, high = wilson_interval(5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    with pytest.raises(ValueError, match="7 wins of 5"):
        wilson_interval(7, 5)


def test_recall_counts_own_columns_among_the_most_similar():
    similarity = torch.tensor([[3.0, 1.0, 2.0], [9.0, 5.0, 7.0], [4.0, 4.0, 4.0]])
    assert recall_at(similarity, (1, 2, 3)) == {1: pytest.approx(1 / 3), 2: pytest.approx(1 / 3), 3: 1.0}


def test_average_precision_by_hand_and_by_another_library():
    from sklearn.metrics import average_precision_score

    score, label = torch.rand(30, 4), (torch.rand(30, 4) < 0.3).float()
    label[:, 3] = 0  # a class that never occurs is left out
    expected = sum(average_precision_score(label[:, k], score[:, k]) for k in range(3)) / 3
    assert average_precision(score, label) == pytest.approx(expected, abs=1e-6)
    assert average_precision(torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[0.0], [1.0], [1.0]])) == pytest.approx(
        (1 / 2 + 2 / 3) / 2
    )


def test_rank_correlation_knows_order_ties_and_how_sure_it_is():
    from scipy.stats import spearmanr

    from polyspace.utils.metrics import spearman_interval

    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, generator=g)
    y = (x + torch.randn(40, generator=g)).round()
    found, low, high = spearman_interval(x, y)
    assert found == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
    assert low < found < high
    assert spearman_interval(x, x.exp())[0] == pytest.approx(1)
    assert math.isnan(spearman_interval(x, torch.ones(40))[0])


def test_an_interval_over_groups_is_wider_where_clips_of_a_group_agree():
    from polyspace.utils.metrics import bootstrap_interval, group_interval

    groups = torch.arange(10).repeat_interleave(20)
    values = (groups % 2).float()
    low, high = group_interval(values, groups)
    plain = bootstrap_interval(values)
    assert low < 0.5 < high and high - low > 2 * (plain[1] - plain[0])
    each = group_interval(values, torch.arange(200))
    assert each == pytest.approx(plain, abs=0.03)


def test_motion_and_tokens_are_told_with_their_correlation():
    import numpy as np

    from polyspace.utils.looks_file import motion_of, tokens_against_motion

    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1] = 10
    assert motion_of(frames) == 10 and motion_of(frames[:1]) == 0
    found = tokens_against_motion(range(1, 11), [float(n) for n in range(10)], 50)
    assert found["spearman"] == pytest.approx(1) and found["cells"] == 50
    assert "spearman" not in tokens_against_motion([3] * 10, [float(n) for n in range(10)], 50)
