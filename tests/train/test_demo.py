"""The demo at its smallest: every step runs on the package's own backbones and ends in one self-contained page."""

import json
import re

import pytest
from conftest import run_ok

from polyspace.train.demo import DemoConfig, command_lines
from polyspace.train.embedded.make import TASKS


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    place = tmp_path_factory.mktemp("demo")
    done = run_ok("python -m polyspace.train.demo --classes 2 --clips 20 --epochs 2 --curve_seeds 2 --out out", place)
    return place / "out", done.stdout


def test_the_last_line_is_the_path_of_a_page_that_needs_no_network(demo):
    out, said = demo
    page = (out / "report.html").read_text()
    assert said.strip().splitlines()[-1].endswith("report.html") and len(page) < 15e6
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    for heading in ("Clips", "Classification", "With few labels", "Cost", "Commands"):
        assert heading in page
    assert "STAND-IN" not in page


def test_the_page_shows_the_lines_that_ran_and_what_each_backbone_learned(demo):
    out, _ = demo
    page = (out / "report.html").read_text()
    for _, line in command_lines(DemoConfig()):
        assert f"polyspace {line.split()[0]}" in page
    assert all(task.says.split("(")[0].strip() in page for task in TASKS.values())


def test_evaluation_and_labels_curve_lie_beside_it(demo):
    out, _ = demo
    result = json.loads((out / "fusion" / "eval_hmdb51_validation.json").read_text())
    curve = json.loads((out / "labels_curve" / "labels_curve_hmdb51_validation.json").read_text())
    assert not result["stand_ins"] and not curve["stand_ins"] and result["generated"] and curve["generated"]
    assert set(result["teacher_heads"]) == {"timesformer", "vivit"}  # classifiers keep their heads
    assert [p["fraction"] for p in curve["points"]] == [0.01, 0.05, 0.1, 1.0]
    assert curve["clips"]["scored"] == result["clips"]["evaluated"]
