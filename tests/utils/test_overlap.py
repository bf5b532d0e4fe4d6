"""Overlapped reading, work and writing."""

import time

import pytest

from polyspace.utils.errors import UserError
from polyspace.utils.overlap import overlapped


def test_slots_are_not_used_again_before_they_are_written():
    inputs, outputs, seen = {}, {}, []

    def read(span, slot):
        inputs[slot] = span

    def work(span, slot):
        assert inputs[slot] == span
        outputs[slot] = span

    def write(span, slot):
        time.sleep(0.002 * (span % 3))
        assert outputs[slot] == span
        seen.append(span)

    assert list(overlapped(range(40), read, work, write)) == list(range(40)) == seen


@pytest.mark.parametrize("stage", ["read", "work", "write"])
def test_an_error_in_any_stage_stops_all_and_is_raised(stage):
    def step(name):
        def run(span, slot):
            if name == stage and span == 5:
                raise UserError(f"{name} failed")

        return run

    done = []
    with pytest.raises(UserError, match=f"{stage} failed"):
        for span in overlapped(range(1000), step("read"), step("work"), step("write")):
            done.append(span)
    assert done == list(range(len(done))) and len(done) <= 5
