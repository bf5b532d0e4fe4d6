import pytest
import torch

from polyspace.utils.monitor import (
    collapse_alarm,
    effective_rank,
    position_std,
    usage_perplexity,
)


def test_effective_rank_counts_equal_directions():
    x = torch.cat([torch.eye(5), -torch.eye(5)])
    assert effective_rank(x).item() == pytest.approx(5, abs=1e-4)
    assert effective_rank(torch.outer(torch.arange(4.0), torch.ones(3))).item() == pytest.approx(1, abs=1e-3)


def test_features_that_know_only_where_have_no_std():
    x = torch.randn(1, 4, 3).expand(6, -1, -1)
    assert position_std(x).item() == 0


def test_even_use_has_perplexity_one():
    assert usage_perplexity(torch.tensor([[2.0, 2, 2, 0]])).item() == pytest.approx(1)
    assert usage_perplexity(torch.tensor([[1e6, 1, 1, 0]])).item() == pytest.approx(1 / 3, abs=1e-3)


def test_the_alarm_speaks_on_collapse_only():
    sound = {"position_std": 0.6, "effective_rank": 20.0, "skill": 0.5}
    assert collapse_alarm(sound, 96) is None
    for key, value in (("position_std", 0.001), ("effective_rank", 1.2), ("skill", 0.995)):
        assert collapse_alarm(sound | {key: value}, 96)
