"""The demo at its smallest: every step runs on the package's own backbones and ends in one self-contained page."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import run_ok

import polyspace
from polyspace.commands.demo import DemoConfig, alignment_lines, sentences, use_lines
from polyspace.data.records import ClipRecord
from polyspace.train.embedded.assets import TEACHERS
from polyspace.train.embedded.make import TASKS


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    place = tmp_path_factory.mktemp("demo")
    small = "--classes 2 --clips 20 --epochs 2 --curve_seeds 2 --language_steps 3"
    done = run_ok(f"python -m polyspace.commands.demo {small} --out out", place)
    return place / "out", done.stdout


def test_the_last_line_is_the_path_of_a_page_that_needs_no_network(demo):
    out, said = demo
    page = (out / "report.html").read_text()
    assert said.strip().splitlines()[-1].endswith("report.html") and len(page) < 15e6
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    for heading in ("Backbones", "Spaces", "Classification", "With few labels", "Searched for", "Cost", "Commands"):
        assert heading in page
    assert "STAND-IN" not in page


def test_the_page_shows_the_lines_that_ran_and_what_each_backbone_learned(demo):
    out, _ = demo
    page = (out / "report.html").read_text()
    verbs = [line.split()[0] for _, line in [*alignment_lines(DemoConfig()), *use_lines(DemoConfig())]]
    assert all(f"polyspace {verb}" in page for verb in [*verbs, "index", "search"])
    assert all(TASKS[name].says.split("(")[0].strip() in page for name in ("hnet_vjepa", *TEACHERS))


def test_evaluation_and_labels_curve_lie_beside_it(demo):
    out, _ = demo
    result = json.loads((out / "fusion" / "eval_ssv2_validation.json").read_text())
    curve = json.loads((out / "labels_curve" / "labels_curve_ssv2_validation.json").read_text())
    assert not result["stand_ins"] and not curve["stand_ins"] and result["generated"] and curve["generated"]
    assert set(result["teacher_heads"]) == {"timesformer", "vivit"}  # classifiers keep their heads
    assert [p["fraction"] for p in curve["points"]] == [0.01, 0.05, 0.1, 1.0]
    assert curve["clips"]["scored"] == result["clips"]["evaluated"]


def test_the_bundle_answers_and_its_index_was_searched_with_sentences(demo):
    out, _ = demo
    found = json.loads((out / "search.json").read_text())["queries"]
    assert found and all(len(row["found"]) == 3 for row in found)
    ps = polyspace.load(out / "bundle", device="cpu")
    assert list(ps.spaces) == ["hnet_vjepa", *TEACHERS, "language"]
    again = ps.nearest(ps.embed_text(found[0]["query"]), out / "indexes" / "language", k=3)
    assert [clip.id for clip in again] == [clip["id"] for clip in found[0]["found"]]


def test_sentences_are_of_other_classes_and_other_objects():
    def clip(number, label, thing):
        return ClipRecord(str(number), Path("clip"), label, "", f"moving a {thing} in a circle class {label}")

    clips = [clip(0, 0, "red disc"), clip(1, 0, "blue ring"), clip(2, 1, "red disc"), clip(3, 1, "blue ring")]
    assert sentences(clips) == [clips[0].text, clips[3].text]


@pytest.mark.parametrize("student", ["hnet_vjepa", "vjepa2"])
def test_lines_keep_a_folder_with_a_space_in_one_word(student):
    config = DemoConfig(out=Path("my demo"), student=student)
    for _, line in [*alignment_lines(config), *use_lines(config)]:
        words = shlex.split(line)
        assert "demo" not in {word.split("/")[0] for word in words} and any("my demo/" in word for word in words)
