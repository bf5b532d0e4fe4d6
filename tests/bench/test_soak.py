"""bench/soak.py's statistics and readings: what its page is made of."""

import math
import os
import subprocess
import sys
import time

import pytest
from soak_page import soak_page, summary
from soak_samples import active_clock, block_medians, heap_mib, reading, tree, trend

HOUR = [36.0 * i for i in range(101)]  # an hour and its seconds


def test_a_growing_series_has_its_slope_an_hour_and_a_flat_one_none():
    wiggle = [math.sin(7 * i) for i in range(101)]
    grows = trend(HOUR, [200 + 12 * s / 3600 + w for s, w in zip(HOUR, wiggle, strict=True)], blocks=20)
    assert grows["low"] < 12 < grows["high"] and grows["low"] > 0 and grows["points"] == 20
    assert grows["difference"] == pytest.approx(12 * 0.85 * 0.75, abs=1)  # the quarters' middles
    flat = trend(HOUR, [200 + w for w in wiggle], blocks=20)
    assert flat["low"] < 0 < flat["high"] and abs(flat["difference"]) < 1


def test_what_happens_in_the_warm_up_does_not_count():
    t = trend(HOUR, [s if s < 400 else 50.0 for s in HOUR])
    assert (t["slope"], t["low"], t["high"], t["highest"]) == (0, 0, 0, 50)


def test_an_interval_of_three_points_is_students():
    # through (0, 0), (1, 3), (2, 3): slope 1.5, residuals -0.5, 1, -0.5, so its error is sqrt(1.5 / 1 / 2)
    t = trend([-1800.0, 0.0, 3600.0, 7200.0], [9.0, 0.0, 3.0, 3.0])
    assert t["slope"] == pytest.approx(1.5)
    assert t["high"] - t["slope"] == pytest.approx(12.7062 * 0.75**0.5, rel=1e-4)


def test_two_points_make_no_line():
    assert trend([0.0, 10.0, 20.0], [1.0, 2.0, 3.0]) == {}


def test_blocks_are_stretches_of_time_and_not_of_samples():
    assert block_medians([(0, 1), (1, 3), (2, 2), (10, 7)], 5) == [(0.5, 2), (2, 2), (10, 7)]


def test_the_clock_stands_still_while_the_tree_is_stopped_and_counts_no_second_twice():
    assert active_clock([5, 8, 11, 400, 403], cpu=[0, 6, 7, 7, 9]) == [0, 3, 4, 4, 6]


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="readings are of Linux's /proc")
def test_a_reading_covers_children_with_their_memory_and_files(tmp_path):
    (tmp_path / "left").touch()
    code = "import sys; held = bytearray(b'x') * 2**26; files = [open('/dev/null') for _ in range(20)]; input()"
    before = reading(os.getpid(), tmp_path)
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        for _ in range(200):
            now = reading(os.getpid(), tmp_path)
            if now["fds"] >= before["fds"] + 20:
                break
            time.sleep(0.05)
        assert child.pid in tree(os.getpid())
        assert now["pss_mib"] > before["pss_mib"] + 50 and now["fds"] >= before["fds"] + 20
        assert now["children"] == before["children"] + 1 and now["temp_files"] == 1
    finally:
        child.communicate(b"\n")


def test_the_page_names_every_measure_and_how_long_it_took():
    sample = {"pss_mib": 9.0, "rss_mib": 8.0, "fds": 7, "threads": 6, "children": 2, "temp_files": 0, "shm_mib": 1.0}
    samples = [{"active_s": s, "cpu_s": s} | sample for s in HOUR]
    rounds = [{"active_s": s, "objects": 5, "heap_mib": 4.0, "blocks": 3} | sample for s in HOUR[::10]]
    kind = summary(samples, rounds, 7200.0)
    assert len(kind["curve"]["fds"]) == 101 and kind["cpu_minutes"] == 60
    about = {
        "command": "x",
        "picture": "soak.png",
        "real_clips": False,
        "minutes": 50.0,
        "asked": 60.0,
        "kinds": {"train": kind},
    }
    text = soak_page(about | {"environment": {"cpus": 2, "python": "3", "torch": "2"}})
    assert (
        "60.0 minutes of work within 120 by the clock" in text
        and "+0.00 (+0.00 to +0.00)" in text
        and "/dev/shm" in text
    )


def test_what_is_held_is_told_apart_from_what_was_given_back():
    before = heap_mib()
    if math.isnan(before):
        pytest.skip("no mallinfo2 in this C library")
    held = bytearray(50 * 2**20)
    assert heap_mib() > before + 45
    del held
    assert heap_mib() < before + 5
