"""What the explorer shows, without a browser: pictures, rows, sentences, and HTML that holds all that it needs."""

import re
import shlex
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import polyspace
from polyspace.commands.app import main as app_main
from polyspace.config import run_command
from polyspace.explorer import markup, rollouts, views
from polyspace.explorer.library import Library, shrink
from polyspace.explorer.rollouts import imagined_error, open_world
from polyspace.explorer.server import is_loopback
from polyspace.explorer.session import Explorer, told
from polyspace.explorer.sources import open_sources
from polyspace.train.collect_episodes import main as collect_main
from polyspace.train.run import main as run_main
from polyspace.utils.errors import UserError


@pytest.fixture(scope="module")
def store(made):
    return made / "features" / "features_hmdb51_train.json"


@pytest.fixture(scope="module")
def explorer(ps, made, store, tmp_path_factory):
    place = tmp_path_factory.mktemp("explorer") / "words"
    ps.index(sorted((made / "data").rglob("*.avi"))[:6], place, "language")
    return Explorer(ps, [store, made / "indexes" / "videomae", place], made / "data", made / "outputs")


def test_a_step_is_drawn_and_its_chunks_are_told(ps, clip):
    view = views.look(ps, clip)
    assert view.steps == 3 and view.every == 2 and len(views.strip(view)) == 3
    plain, drawn = views.step_pictures(view, 1, side=100)
    assert plain.shape == drawn.shape == (120, 120, 3) and (plain[::5, ::5] == view.frames[2]).all()
    assert (drawn == 255).all(-1).any()  # lines between chunks
    for step in range(3):
        rows = views.chunk_rows(view, step)
        assert sum(row["cells_here"] for row in rows) == 9
        assert {row["chunk"] for row in rows} == set(view.chunks.owner[step].flatten().tolist())
        assert all(row["steps"][0] <= step <= row["steps"][1] for row in rows)


def test_fewer_tokens_are_said_and_drawn_with_a_budget(ps, clip):
    view = views.look(ps, clip, 4)
    assert view.sentence().startswith("4 tokens for 27 cells, 6.8 times fewer. 3 steps of 3 × 3 cells")
    assert "2 frames × 8 × 8 pixels" in view.sentence()
    assert ps.chooses


def test_every_space_that_a_store_serves_is_a_source(ps, explorer, store, made):
    assert [s.space for s in explorer.sources] == ["hnet_vjepa", "vivit", "videomae", "videomae", "language"]
    about = {s.name: s.about for s in explorer.sources}
    assert "the teacher's own features" in about["vivit · features_hmdb51_train"]
    assert "R²" in about["vivit · features_hmdb51_train"]
    twice, _, _ = open_sources(ps, [store, store])
    assert len({s.name for s in twice}) == 6
    none, notes, _ = open_sources(polyspace.load(made / "outputs", device="cpu"), [made / "indexes" / "videomae"])
    assert none == [] and "holds videomae, which this bundle does not serve" in notes[0]


def test_neighbours_of_all_spaces_come_from_one_run_of_the_student(ps, explorer, clip, monkeypatch):
    spaces = list(ps.spaces)
    known = views.vectors(ps, clip, spaces)
    for space in spaces:
        assert torch.allclose(known[space], ps.encode(clip, space), atol=1e-5)
    for source in explorer.sources:
        column = views.neighbours(ps, known, source, 3, clip)
        told = ps.nearest(clip, source.store, source.space, k=3)
        assert [f.id for f in column.found] == [n.id for n in told] and not column.fault
    own = views.neighbours(ps, known, explorer.sources[0], 50, clip)
    assert [f.score for f in own.found if f.itself] in ([], [pytest.approx(1, abs=1e-4)])
    runs = []
    monkeypatch.setattr(ps, "encode", lambda *a, **k: runs.append(a) or torch.zeros(32))
    views.vectors(ps, clip, ["vivit", "videomae", "hnet_vjepa"])
    assert len(runs) == 1


def test_a_store_of_other_weights_is_a_sentence_in_its_column(ps, explorer, clip):
    source = explorer.sources[0]
    backbone = source.store.spaces["hnet_vjepa"]
    kept, backbone["digest"] = backbone["digest"], "other"
    try:
        column = views.neighbours(ps, {"hnet_vjepa": torch.zeros(32)}, source, 3)
    finally:
        backbone["digest"] = kept
    assert "other weights" in column.fault and column.found == []
    assert "other weights" in markup.column_html(column, explorer.library)


def test_classes_of_every_head_and_which_was_chosen(ps, clip, made):
    view = views.classes(ps, clip)
    assert list(view.heads) == ["fusion", "student", "probe"] and view.chosen in ("fusion", "student")
    for heads in view.heads.values():
        assert sum(heads.values()) == pytest.approx(1, abs=1e-4)
    assert dict(ps.classify(clip, k=1)).items() <= view.heads[view.chosen].items()
    assert "Held-out clips chose" in view.sentence and "95 % interval" in view.sentence
    shown = markup.classes_html(view, False)
    assert "(chosen)" in shown and shown.count("<table>") == 2  # the probe has classes of its own
    assert views.classes(polyspace.load(made / "outputs", device="cpu"), clip).chosen == "probe"


def test_text_is_searched_or_it_is_said_why_not(ps, explorer, made):
    (source,) = explorer.text_sources
    found = views.search(ps, "a red square", source, 3).found
    assert len(found) == 3 and explorer.library.pictures(found[0].id)
    for text in ("  ", "x" * 501):
        with pytest.raises(UserError):
            views.search(ps, text, source, 3)
    assert "No index of the space language" in views.text_sources(ps, explorer.sources[:2])[1]
    assert "No index" in Explorer(ps).search_html("a", None)


def test_ids_mean_files_by_path_or_by_a_name_that_one_file_has(tmp_path, clip):
    for place in ("a/one.avi", "b/one.avi", "b/two.avi"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(clip, tmp_path / place)
    (tmp_path / "b" / "notes.txt").write_text("no video")
    library = Library(tmp_path)
    assert list(library.clips) == ["a/one.avi", "b/one.avi", "b/two.avi"]
    assert library.find("two") == library.find("b/two") == tmp_path / "b" / "two.avi"
    assert library.find("train/two") is None  # another folder's clip of the same name
    assert library.find("one") is None and library.find("a/one") == tmp_path / "a" / "one.avi"
    assert library.find(str(tmp_path / "b" / "notes.txt")) is None and library.find("/etc/passwd") is None
    assert [p.shape for p in library.pictures("two", 2, 64)] == [(64, 64, 3)] * 2
    assert list(Library(None, [str(clip), "nothing"]).clips) == [str(clip)]
    for fault in (tmp_path / "none", tmp_path / "b" / "notes.txt"):
        with pytest.raises(UserError, match="not a folder"):
            Library(fault)


def test_a_broken_clip_has_no_picture_and_a_wide_one_keeps_its_shape(tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    assert Library(tmp_path).pictures("broken") == []
    assert shrink(np.zeros((40, 160, 3), np.uint8), 80).shape == (20, 80, 3)


def test_what_is_no_video_is_a_sentence_without_the_places_of_files(explorer, tmp_path, clip):
    from polyspace.data.video import read_frames
    from polyspace.data.video_writer import write_video

    (tmp_path / "text.mp4").write_text("no video")
    write_video(tmp_path / "one.avi", read_frames(clip, [0]).numpy(), fps=10)
    (tmp_path / "words.txt").write_text("no video")
    for name, words in (
        ("text.mp4", "can't be read as a video"),
        ("one.avi", "only 1 of at least 2 frames"),
        ("words.txt", "no video's ending"),
    ):
        with pytest.raises(UserError, match=words) as fault:
            explorer.open(tmp_path / name, name, None)
        assert str(tmp_path) not in str(fault.value)


@pytest.mark.slow
def test_a_clip_of_4k_and_one_of_ten_minutes_are_looked_at(explorer, tmp_path):
    from polyspace.data.video_writer import write_video

    large = np.zeros((2160, 3840, 3), np.uint8)
    write_video(tmp_path / "4k.avi", (np.roll(large + 90, n) for n in range(12)), fps=30)
    drawn = np.random.default_rng(0)
    write_video(tmp_path / "long.avi", (drawn.integers(0, 255, (32, 32, 3), np.uint8) for _ in range(9000)), fps=15)
    for name in ("4k.avi", "long.avi"):
        opened = explorer.open(tmp_path / name, name, None)
        assert opened.view.frames.shape == (6, 24, 24, 3) and opened.view.chunks.tokens >= 1
        assert "<table" in explorer.classes_html(opened)


def test_pages_hold_their_pictures_and_escape_what_others_wrote(explorer, clip):
    opened = explorer.open(clip, "<script>{{x}}${y}.avi", 5)
    parts = [markup.strip_html(opened.view, 0), markup.step_html(opened.view, 2), explorer.neighbours_html(opened)]
    parts += [explorer.detail_html(opened, "vivit · features_hmdb51_train"), explorer.classes_html(opened)]
    parts += [explorer.head_html(), markup.fault(opened.name)]
    for part in parts:
        assert "<script" not in part and "{{" not in part and "${" not in part
        for place in re.findall(r'(?:src|href)="([^"]*)"', part):
            assert place.startswith("data:image/png;base64,")
    assert "<title>chunk " in parts[1] and "another number of tokens" in explorer.classes_html(opened)
    with pytest.raises(UserError, match="no such place"):
        explorer.detail_html(opened, "elsewhere")


def test_stand_ins_are_marked_wherever_they_show(ps, explorer, clip):
    known = {name: about | {"backend": "identity"} for name, about in ps.bundle.spaces.items() if name == "vivit"}
    other = polyspace.PolySpace(replace(ps.bundle, spaces=ps.bundle.spaces | known), "cpu")
    page = Explorer(other, [explorer.sources[0].store.path])
    assert page.stand_ins == ["vivit"] and "Untrained stand-ins" in page.head_html()
    opened = page.open(clip, clip.name, None)
    assert page.neighbours_html(opened).count("column stand-in") == 1
    assert "identity stand-in" in page.detail_html(opened, "vivit · features_hmdb51_train")
    assert "identity stand-in" in page.classes_html(opened)


def test_a_world_model_of_generated_episodes_shows_its_error_over_steps(explorer, made, ps):
    assert explorer.tasks == [] and "imagined latents are" in explorer.rollout_html(None, None)
    frames = np.random.default_rng(0).integers(0, 255, (4, 24, 24, 3)).astype(np.uint8)
    model, copied = imagined_error(explorer.world, frames, np.zeros((3, 7), np.float32))
    assert model.shape == copied.shape and (copied > 0).all()
    still = imagined_error(explorer.world, np.repeat(frames[:1], 4, 0), np.zeros((3, 7), np.float32))
    assert still[1].max() < 1e-6  # nothing moves: the copy is right
    world, words = open_world(made / "features", ps.device)
    assert world is None and "no action phase" in words
    assert "--run" in Explorer(ps).rollout_html(None, None)


@pytest.mark.slow
def test_push_t_is_planned_with_the_world_model_and_on_the_simulator(ps, made, tmp_path, monkeypatch):
    pytest.importorskip("gym_pusht")
    assert (
        run_command(collect_main, shlex.split(f"--out {tmp_path}/e.safetensors --episodes 6 --steps 6 --size 24")) == 0
    )
    settings = "steps=2 batch=4 width=16 depth=1 horizon=2 action_dim=2 size=24 episodes.source=file"
    sets = " ".join(f"--set action.{item}" for item in [*settings.split(), f"episodes.root={tmp_path}/e.safetensors"])
    line = f"--work_dir {tmp_path}/run --sequence action --init_from {made}/outputs {sets}"
    assert run_command(run_main, shlex.split(line)) == 0
    monkeypatch.setattr(rollouts, "PLANNER", {"samples": 4, "iterations": 1, "elites": 2, "std": 1.0})
    page = Explorer(ps, run=tmp_path / "run")
    assert page.tasks == ["reach", "push_near"] and "of copying the last frame" in page.world.sentence()
    made_of = rollouts.pusht_rollout(page.world, "reach", 3)
    assert "with the world model: " in made_of.sentence and made_of.picture.std() > 10
    for task, seed in (("push", 0), ("reach", -1), ("reach", 0.5), ("reach", None)):
        with pytest.raises(UserError, match="whole number"):
            page.rollout_html(task, seed)


def test_without_gradio_the_extra_is_named(monkeypatch, made, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run_command(app_main, ["--bundle", str(made / "bundle")]) == 2
    assert "pip install 'polyspace[app]'" in capsys.readouterr().err


def test_faults_of_a_panel_are_sentences():
    def broken() -> str:
        raise RuntimeError("it <b>broke</b>")

    assert "it &lt;b&gt;broke" in told(broken) and 'role="alert"' in told(broken)


def test_only_this_machines_addresses_are_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org")))
