"""`polyspace report`: what lies in a folder stands on the page, what is broken is named, pictures have their data."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import run_fails
from matplotlib import pyplot as plt

from polyspace.bundle.library import space_view
from polyspace.commands.report import ReportConfig, report
from polyspace.report.chunk_figures import chunks_figure, mistakes_figure
from polyspace.report.figures import INK, plans_figure, svg_figure
from polyspace.report.html import Page
from polyspace.report.library import FRAMES, SIDE, Clip, Library, SpaceView, thumbnails
from polyspace.report.library_sections import found_section, library_sections
from polyspace.report.phase_sections import read_lines
from polyspace.report.run_files import find_files
from polyspace.utils.checkpoint_io import read_json, save_tensors
from polyspace.utils.chunk_map import tubelets
from polyspace.utils.errors import UserError
from polyspace.utils.looks_file import Looks, load_looks, save_looks
from polyspace.utils.projection import pca_map, umap_map


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "page.html"
    return report(ReportConfig(run_dir=made, out=path, device="cpu"), "polyspace report made").read_text()


def test_every_part_of_a_folder_is_told_of(page):
    heads = re.findall(r"<h[23][^>]*>([^<]+)", page)
    for words in (
        "The student&#x27;s tokens",
        "Tokens against motion",
        "Spaces",
        "Nearest clips",
        "Classification",
        "Cost",
        "Pretrain",
        "Chunks over frames",
        "What could not be foreseen",
        "Language",
        "Probe",
        "Action",
        "Planned against true trajectories",
        "Commands",
    ):
        assert words in heads, heads


def test_the_page_needs_nothing_else(page):
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page) and "@import" not in page
    assert not set(re.findall(r"url\(([a-z]+):", page)) - {"data"}
    assert len(page) < 15e6 and "Left out" not in page


def test_ids_are_unique_and_every_reference_is_met(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert wanted and set(wanted) <= set(ids)


def test_behind_a_figure_stand_its_numbers_and_its_command(page, made):
    found = {
        name: json.loads(base64.b64decode(data))
        for name, data in re.findall(r'download="([^"]+)" href="data:application/json;base64,([^"]+)"', page)
    }
    result = json.loads((made / "fusion" / "eval_hmdb51_validation.json").read_text())
    assert found["confusion.json"] == {"classes": result["classes"], "counts": result["confusion"]}
    assert found["plans.json"] == read_json(made / "outputs" / "action" / "plans.json")
    assert found["tokens.json"]["cells"] == 27 and len(found["tokens.json"]["tokens"]) > 8
    assert len(found["maps.json"]["clips"]) == 28 and found["chunks.json"]["chunks"][0]["tokens"] > 0
    assert "polyspace report made" in page


def test_a_map_has_a_dot_for_every_clip_in_every_space(page):
    maps = re.findall(r'aria-label="map of ([^"]+)">(.*?)</svg>', page)
    assert [name for name, _ in maps] == [
        "hnet_vjepa",
        "vivit, translated",
        "vivit",
        "videomae, translated",
        "videomae",
    ]
    assert all(len(re.findall("<circle", dots)) == 28 for _, dots in maps)


def test_what_is_broken_is_named_and_the_rest_is_shown(made, tmp_path):
    shutil.copytree(made / "fusion", tmp_path / "fusion")
    shutil.copytree(made / "outputs" / "pretrain", tmp_path / "run" / "pretrain")
    (tmp_path / "run" / "pipeline_manifest.json").write_text('{"phases": {"pre')
    text = report(ReportConfig(run_dir=tmp_path, device="cpu"), "").read_text()
    assert "run/pipeline_manifest.json" in text and "not valid JSON" in text and "Classification" in text


def test_a_store_whose_videos_are_gone_is_mapped_without_pictures(made, tmp_path):
    shutil.copytree(made / "features", tmp_path / "features")
    about = next((tmp_path / "features").glob("features_hmdb51_train.run.json"))
    run = read_json(about)
    run["config"]["root"] = str(tmp_path / "gone")
    about.write_text(json.dumps(run))
    text = report(ReportConfig(run_dir=tmp_path, device="cpu"), "").read_text()
    assert "were not found" in text and "image/jpeg" not in text and "<circle" in text
    again = report(ReportConfig(run_dir=tmp_path, root=[made / "data"], device="cpu"), "").read_text()
    assert "image/jpeg" in again


def test_a_folder_without_anything_is_a_sentence(tmp_path):
    run_fails(f"polyspace report {tmp_path}", tmp_path, "holds no run")
    run_fails(f"polyspace report {tmp_path}/no", tmp_path, "is not a folder")


def test_stand_ins_are_announced_on_the_page_and_in_the_figures(tmp_path, made):
    shutil.copytree(made / "fusion", tmp_path / "fusion")
    file = tmp_path / "fusion" / "eval_hmdb51_validation.json"
    result = read_json(file)
    result["stand_ins"] = ["vivit"]
    file.write_text(json.dumps(result))
    text = report(ReportConfig(run_dir=tmp_path, device="cpu"), "").read_text()
    plain = report(ReportConfig(run_dir=made, out=tmp_path / "plain.html", videos=False, device="cpu"), "").read_text()
    assert "STAND-IN: vivit" in text and "#ff0000" in text
    assert "STAND-IN" not in plain and "#ff0000" not in plain


def test_svg_takes_the_pages_colour_and_has_no_background():
    figure, axis = plt.subplots()
    axis.plot([0, 1], [0, 1])
    text = svg_figure(figure, "a b")
    assert text.startswith("<svg") and "currentColor" in text and INK not in text
    assert 'id="a_b_' in text and "fill: #ffffff" not in text


def test_names_can_not_close_the_script_or_the_page():
    evil = "<!--<script></script><script>alert(1)</script> $\\frac$"
    clips = [Clip(evil, 0, "a"), Clip("b", 1, "b")]
    view = SpaceView(evil, np.zeros((2, 2), np.float32), ("x", "y"), np.array([[1], [0]]), (0.0, 0.0, 0.0))
    page = Page(evil)
    library_sections(page, Library(evil, clips, [evil, "k"], [view], thumbnails([None, None]), 0.5))
    found_section(page, [{"query": evil, "found": [{"id": evil, "score": 1.0}]}], {}, None)
    text = "".join(page.parts)
    assert "<script>alert" not in text and "<!--" not in text
    assert 'class="standin"' not in text
    library_sections(page, Library("x", clips, ["j", "k"], [view], None, 0.5, stand_ins=["vivit"]))
    assert 'class="maps standin"' in "".join(page.parts)
    assert 'class="standin"' in page.parts[-1]


def test_a_sheet_has_a_row_for_every_clip_and_grey_where_one_can_not_be_read():
    import io

    from PIL import Image

    red = np.zeros((3, 40, 60, 3), np.uint8)
    red[..., 0] = 250
    sheet = np.asarray(Image.open(io.BytesIO(thumbnails([red, None]))))
    assert sheet.shape == (2 * SIDE, FRAMES * SIDE, 3)
    assert sheet[:SIDE, :, 0].min() > 200 and sheet[:SIDE, :, 1].max() < 60 and abs(int(sheet[-5, 5, 0]) - 128) < 4
    assert thumbnails([None]) is None


def test_a_real_size_is_drawn_in_a_few_megabytes():
    noise = np.random.default_rng(0)
    frames = noise.integers(0, 255, (4, 32, 224, 224, 3), dtype=np.uint8)
    maps = {"chunks": [tubelets((16, 14, 14))] * 4, "regions": [tubelets((16, 14, 14))] * 4}
    error = noise.random((4, 16, 14, 14)).astype(np.float32)
    looks = Looks(frames, maps, error > 0.5, error)
    assert len(svg_figure(chunks_figure(looks), "a")) + len(svg_figure(mistakes_figure(looks), "b")) < 13e6


def test_looks_come_back(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (2, 4, 16, 16, 3), dtype=np.uint8)
    looks = Looks(frames, {"chunks": [tubelets((2, 2, 2))] * 2}, np.zeros((2, 2, 2, 2), bool))
    again = load_looks(save_looks(tmp_path / "looks.safetensors", looks))
    assert (again.frames == frames).all() and (again.hidden == looks.hidden).all() and again.error is None
    assert [m.tokens for m in again.maps["chunks"]] == [8, 8]
    torch.save({}, tmp_path / "no.safetensors")
    with pytest.raises(UserError, match="damaged"):
        load_looks(tmp_path / "no.safetensors")
    save_tensors(tmp_path / "eight.safetensors", {"frames": torch.zeros(2, 4, 16, 16, 3, dtype=torch.float8_e4m3fn)})
    with pytest.raises(UserError, match=r"file of looks .*eight"):
        load_looks(tmp_path / "eight.safetensors")


def test_a_log_that_was_cut_short_keeps_its_whole_lines(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}] and read_lines(tmp_path / "no") == []


def gaps(x: torch.Tensor) -> torch.Tensor:
    return (x[:, None] - x).norm(dim=-1)


def test_maps_keep_what_lies_in_two_dims_and_say_how_much():
    g = torch.Generator().manual_seed(0)
    flat = torch.randn(30, 2, generator=g) * torch.tensor([3.0, 1.0])
    turned = flat @ torch.linalg.qr(torch.randn(5, 5, generator=g))[0][:2]
    points, axes = pca_map(turned)
    assert torch.allclose(gaps(points), gaps(flat), atol=1e-4)
    assert axes[0].startswith("PC 1 (") and sum(int(re.search(r"\d+", a[5:])[0]) for a in axes) in (99, 100, 101)
    assert pca_map(torch.ones(3, 4))[0].abs().max() == 0 and pca_map(torch.randn(1, 4))[0].shape == (1, 2)


def test_umap_is_asked_for_by_name_and_told_of_where_it_is_missing():
    try:
        import umap  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="umap-learn"):
            umap_map(torch.randn(20, 4))
    else:
        assert umap_map(torch.randn(20, 4))[0].shape == (20, 2)


def test_where_there_is_no_other_source_nothing_is_said_of_neighbours():
    for groups in (["a"], ["a", "a"]):
        view = space_view("x", torch.randn(len(groups), 4), [0] * len(groups), groups, "pca")
        assert view.same is None and (view.nearest == -1).all() and view.points.shape == (len(groups), 2)
        page = Page("x")
        clips = [Clip(str(i), 0, g) for i, g in enumerate(groups)]
        library_sections(page, Library("x", clips, ["k"], [view], None, 0.0))
        assert "<circle" in "".join(page.parts)


def test_neighbours_are_of_other_sources_and_shares_are_over_all_clips():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    view = space_view("x", x, [0, 0, 1, 1], ["a", "b", "c", "d"], "pca")
    assert view.nearest[:, 0].tolist() == [1, 0, 3, 2] and view.same[0] == pytest.approx(1 / 3)
    same_source = space_view("x", x, [0, 0, 1, 1], ["a", "a", "c", "d"], "pca")
    assert 1 not in same_source.nearest[0]


def test_plans_of_actions_of_one_dim_can_be_drawn():
    window = {"taken": [[1.0], [1.0]], "planned": [[0.5], [1.0]]}
    plt.close(plans_figure({"windows": [window] * 3}))


def test_hidden_folders_checkpoints_and_data_are_not_searched(tmp_path):
    for place in (".x", "data", "step_000001", "a/b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "eval_a.json").write_text("{}")
    found = find_files(tmp_path)
    assert [p.parent.name for p, _ in found.evaluations] == ["b"]
    assert not find_files(tmp_path / "a" / "b").empty and find_files(tmp_path / "data" / "..").evaluations
    for seconds, kept in ((1.5, True), ("1.5", False)):
        (tmp_path / "demo.json").write_text(json.dumps({"steps": [{"line": "polyspace eval", "seconds": seconds}]}))
        found = find_files(tmp_path)
        assert (found.demo is not None) == kept and ("demo.json" in found.unread) != kept


def test_a_part_that_fails_leaves_the_page_and_its_reason(tmp_path):
    page = Page("x")
    with page.section("good"):
        page.heading("One")
    with page.section("eval_a.json"):
        page.heading("Two")
        page.text(str({}["heads"]))
    assert [words for _, words in page.contents] == ["One"] and len(page.parts) == 1
    assert "heads" in page.failed["eval_a.json"] and "another form" in page.failed["eval_a.json"]


def test_older_files_and_damaged_shards_do_not_take_the_rest_away(made, tmp_path):
    for name in ("fusion", "features"):
        shutil.copytree(made / name, tmp_path / name)
    (tmp_path / "fusion" / "eval_old_test.json").write_text('{"format": "polyspace.eval"}')
    shard = next((tmp_path / "features").glob("features_hmdb51_train-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-9])
    text = report(ReportConfig(run_dir=tmp_path, device="cpu"), "").read_text()
    assert "eval_old_test.json" in text and "features_hmdb51_train" in text and "Classification" in text


def test_converters_of_another_student_translate_nothing(made, tmp_path):
    for name in ("bundle", "features", "fusion"):
        shutil.copytree(made / name, tmp_path / name)
    manifest = next(tmp_path.glob("features/features_hmdb51_train.json"))
    known = read_json(manifest)
    known["spaces"]["hnet_vjepa"]["digest"] = "0" * 64
    manifest.write_text(json.dumps(known))
    text = report(ReportConfig(run_dir=tmp_path, videos=False, device="cpu"), "").read_text()
    assert "No translated spaces from the bundle" in text and 'map of videomae"' in text
    assert "map of videomae, translated" not in text


def test_what_was_found_by_several_searches_is_shown_with_its_own_pictures(tmp_path):
    page = Page("x")
    rows = [{"query": q, "found": [{"id": f"{q}{k}", "score": 1.0} for k in range(2)]} for q in "ab"]
    found_section(page, rows, {"b1": "the last"}, b"jpeg")
    text = "".join(page.parts)
    assert f'title="the last" style="background-position-y:-{3 * SIDE}px"' in text
    assert text.count("data:image/jpeg") == 1


def test_a_broken_run_file_costs_a_command_and_not_the_page(made, tmp_path):
    shutil.copytree(made / "outputs", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    text = report(ReportConfig(run_dir=tmp_path, device="cpu"), "polyspace report x").read_text()
    assert "Pretrain" in text and "Planned against true trajectories" in text
