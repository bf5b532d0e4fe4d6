import time

import pytest
import torch

from polyspace.train.cost import HEAD, _sum, choices, timed_rounds

CPU = torch.device("cpu")


def test_rounds_end_with_the_budget_but_not_before_the_least_number():
    calls = []
    times = timed_rounds({"a": lambda: calls.append("a"), "b": lambda: time.sleep(0.01)}, CPU, 0.0, least=2)
    assert [len(t) for t in times.values()] == [2, 2] == [len(calls)] * 2
    assert len(timed_rounds({"a": lambda: None}, CPU, 60.0)["a"]) == 50


def test_sums_add_up_calls_of_one_round_and_share_activation_memory():
    row = _sum([([1.0, 3.0], 2 * 2**20, 5 * 2**20), ([2.0, 0.0], 1 * 2**20, 7 * 2**20)])
    assert row["p50_s"] == row["p95_s"] == pytest.approx(3.0)  # slow and quick calls met
    assert row["peak_mib"] == 2 + 1 + 7


def test_what_a_user_chooses_between():
    rows = choices("s", ["t", "u"])
    assert rows["student + teachers"] == ["s", "t", "u"] and rows[f"student + {HEAD}"] == ["s", HEAD]
    assert rows["all teachers"] == ["t", "u"] and rows["teacher t"] == ["t"]
