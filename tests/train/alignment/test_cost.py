import time
from types import SimpleNamespace

import pytest
import torch
from typecheck import unchecked

from polyspace.models.spaces.converters import ConverterBank, LinearConverter, ResidualMLP
from polyspace.models.spaces.fusion import matched_pair
from polyspace.train.alignment.cost import HEAD, _sum, choices, cost_table, timed_rounds
from polyspace.utils.standardise import fit_standardiser

CPU = torch.device("cpu")


def test_rounds_end_with_the_budget_but_not_before_the_least_number():
    calls = []
    times = timed_rounds({"a": lambda: calls.append("a"), "b": lambda: time.sleep(0.01)}, CPU, 0.0, least=2)
    assert [len(t) for t in times.values()] == [2, 2] == [len(calls)] * 2
    assert len(timed_rounds({"a": lambda: None}, CPU, 60.0)["a"]) == 30


def test_sums_add_up_calls_of_one_round_and_share_activation_memory():
    row = _sum([([1.0, 3.0], 2 * 2**20, 5 * 2**20), ([2.0, 0.0], 1 * 2**20, 7 * 2**20)])
    assert row["p50_s"] == pytest.approx(3.0)  # slow and quick calls met
    assert row["peak_mib"] == 2 + 1 + 7


def test_a_95th_percentile_needs_twenty_calls():
    assert _sum([([1.0] * 19, 0, 0)])["p95_s"] is None and _sum([([1.0] * 20, 0, 0)])["p95_s"] == 1.0


def test_counting_leaves_the_callers_converters_where_they_are_and_counts_all_of_their_weights():
    ridge = LinearConverter(torch.randn(6, 4), torch.zeros(4))
    network = ResidualMLP(
        ridge, 8, torch.zeros(6), torch.ones(6), fit_standardiser(torch.zeros(4), torch.eye(4), "none")
    )
    bank = ConverterBank({"t": network})
    fusion, _ = matched_pair(6, bank.dims, 16, 3)
    before = {k: v.clone() for k, v in bank.state_dict().items()}
    card = SimpleNamespace(flops=lambda: 10, params=lambda: 20)
    table = unchecked(cost_table)({"s": card, "t": card}, "s", bank, fusion, torch.device("meta"), batches=())
    assert all(torch.equal(v, before[k]) for k, v in bank.state_dict().items())
    weights = sum(x.numel() for x in (*bank.parameters(), *bank.buffers(), *fusion.parameters()))
    assert table[HEAD]["params"] == weights and table[f"student + {HEAD}"]["params"] == weights + 20


def test_what_a_user_chooses_between():
    rows = choices("s", ["t", "u"])
    assert rows["student + teachers"] == ["s", "t", "u"] and rows[f"student + {HEAD}"] == ["s", HEAD]
    assert rows["all teachers"] == ["t", "u"] and rows["teacher t"] == ["t"]
