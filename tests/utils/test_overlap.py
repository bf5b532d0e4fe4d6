"""Overlapped reading, work and writing."""

import threading
import time

import pytest

from polyspace.utils.errors import UserError
from polyspace.utils.overlap import overlapped


@pytest.mark.parametrize("workers", [1, 3])
def test_slots_are_not_used_again_before_they_are_written(workers):
    inputs, outputs, seen = {}, {}, []

    def read(span, slot):
        inputs[slot] = span

    def work(span, slot):
        time.sleep(0.002 * (-span % 3))
        assert inputs[slot] == span
        outputs[slot] = span

    def write(span, slot):
        time.sleep(0.002 * (span % 3))
        assert outputs[slot] == span
        seen.append(span)

    assert list(overlapped(range(40), read, work, write, workers)) == list(range(40)) == seen


def test_workers_work_at_once():
    together = threading.Barrier(3)
    assert len(list(overlapped(range(6), lambda *_: None, lambda *_: together.wait(60), lambda *_: None, 3))) == 6


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("stage", ["read", "work", "write"])
def test_an_error_in_any_stage_stops_all_and_is_raised(stage, workers):
    wrote = []

    def step(name):
        def run(span, slot):
            if name == stage and span == 5:
                raise UserError(f"{name} failed")
            if name == "write":
                wrote.append(span)

        return run

    done = []
    with pytest.raises(UserError, match=f"{stage} failed"):
        for span in overlapped(range(1000), step("read"), step("work"), step("write"), workers):
            done.append(span)
    assert done == list(range(len(done))) and len(done) <= 5
    assert wrote == list(range(5))
