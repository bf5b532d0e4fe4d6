"""polyspace index and polyspace search, on what the library's commands have made."""

import json
import shlex

import library
import pytest
from conftest import save_small

from polyspace.commands.index import IndexConfig, find_videos
from polyspace.commands.index import main as index_main
from polyspace.commands.search import main as search_main
from polyspace.config import run_command
from polyspace.data.index import load_index
from polyspace.utils.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("search")
    return library.build(place, {name: save_small(name, place / name) for name in ("videomae", "vivit")})


def test_a_folder_is_indexed_and_searched_with_sentences_and_clips(made, tmp_path, capsys):
    clips = sorted((made / "data").rglob("*.avi"))
    line = f"--bundle {made}/bundle --videos {clips[0].parent} {clips[-1]} --space language --out {tmp_path}/index"
    assert run_command(index_main, shlex.split(line)) == 0
    index = load_index(tmp_path / "index")
    assert index.ids == [*(str(c) for c in clips if c.parent == clips[0].parent), str(clips[-1])]
    asked = f"--bundle {made}/bundle --index {tmp_path}/index --k 2 --text 'a red disc' ring --videos {clips[0]}"
    assert run_command(search_main, shlex.split(f"{asked} --out {tmp_path}/found.json")) == 0
    found = json.loads((tmp_path / "found.json").read_text())["queries"]
    assert [row["query"] for row in found] == ["a red disc", "ring", str(clips[0])]
    assert all(len(row["found"]) == 2 for row in found) and found[2]["found"][0]["id"] == str(clips[0])
    said = capsys.readouterr().out
    assert "a red disc" in said and str(clips[0]) in said


def test_a_split_is_indexed_in_a_teachers_space(made, tmp_path):
    line = f"--bundle {made}/bundle --dataset hmdb51 --root {made}/data --split validation --space vivit"
    assert run_command(index_main, shlex.split(f"{line} --out {tmp_path}/index")) == 0
    assert load_index(tmp_path / "index").about["translated"]["from"] == "hnet_vjepa"


def test_bad_questions_are_answered_with_a_sentence(made, tmp_path, capsys):
    bundle = f"--bundle {made}/bundle"
    for main, line, said in (
        (search_main, f"{bundle} --index {made}/indexes/videomae", "give --text or --videos"),
        (search_main, f"{bundle} --index {made}/indexes/videomae --text a", "is no index of the space language"),
        (index_main, f"{bundle} --out {tmp_path}/x", "give either --videos or --dataset"),
        (index_main, f"{bundle} --out {tmp_path}/x --dataset hmdb51", "needs its --root"),
        (index_main, f"{bundle} --out {tmp_path}/x --videos {tmp_path}/none", "does not exist"),
        (index_main, f"{bundle} --out {tmp_path}/x --videos {tmp_path}", "holds no videos"),
    ):
        assert run_command(main, shlex.split(line)) == 2
        assert said in capsys.readouterr().err


def test_a_file_named_twice_is_indexed_once(tmp_path):
    for name in ("b.mp4", "a.webm", "notes.txt"):
        (tmp_path / name).touch()
    config = IndexConfig(bundle=tmp_path, out=tmp_path, videos=[tmp_path, tmp_path / "b.mp4"])
    assert [p.name for p in find_videos(config)] == ["a.webm", "b.mp4"]
    with pytest.raises(UserError):
        find_videos(IndexConfig(bundle=tmp_path, out=tmp_path, videos=[tmp_path], dataset="hmdb51"))
