"""The library as a person uses it: a student pretrained here, teachers' spaces, heads, text, all from one folder."""

import importlib
import itertools
import json
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WIDTH

import polyspace
from polyspace.bundle.export import main as export_main
from polyspace.bundle.files import read_bundle
from polyspace.cli import VERBS
from polyspace.config import run_command
from polyspace.data.feature_store import FeatureStore
from polyspace.data.video import read_frames
from polyspace.models.vjepa.saved import load_encoder
from polyspace.train.language_align import load_language
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError

REPOSITORY = Path(__file__).parents[1]


def test_every_space_comes_from_one_video_and_a_list_is_the_same(ps, clip):
    assert ps.spaces == {"hnet_vjepa": 32, "videomae": WIDTH, "vivit": WIDTH, "language": 16}
    for space, dim in ps.spaces.items():
        one, batch = ps.encode(clip, space=space), ps.encode([clip, str(clip)], space=space)
        assert one.shape == (dim,) and batch.shape == (2, dim)
        assert torch.allclose(batch[0], one, atol=1e-5) and torch.equal(batch[0], batch[1])
    frames = read_frames(clip, range(13))
    assert torch.allclose(ps.encode(frames), ps.encode(clip), atol=1e-5)
    assert torch.allclose(ps.encode(frames.numpy(), "vivit"), ps.encode(clip, "vivit"), atol=1e-5)
    assert ps.encode([], "vivit").shape == (0, WIDTH) and ps.encode([], tokens=True).shape == (0, 27, 32)
    assert ps.classify([]) == []


def test_features_are_those_of_the_store(ps, made):
    store = FeatureStore(made / "features" / "features_hmdb51_train.json")
    paths = [next((made / "data").rglob(f"{i.split('/')[-1]}*")) for i in store.ids[:3]]
    assert torch.allclose(ps.encode(paths), store.features("hnet_vjepa")[:3], atol=1e-5)


def test_tokens_lie_on_the_grid_of_their_space(ps, clip):
    t, h, w = ps.bundle.card.grid
    assert ps.encode(clip, tokens=True).shape == (t * h * w, 32)
    t, h, w = ps.bundle.spaces["vivit"]["grid"]
    assert ps.encode([clip], "vivit", tokens=True).shape == (1, t * h * w, WIDTH)
    with pytest.raises(UserError, match="tokens of space 'videomae' is not served"):
        ps.encode(clip, "videomae", tokens=True)


def test_a_budget_can_be_given_to_a_call(ps, clip, made):
    few, all_of_them = ps.encode(clip, num_chunks=3), ps.encode(clip)
    assert few.shape == all_of_them.shape and not torch.allclose(few, all_of_them)
    towers, _ = load_language(made / "outputs" / "language")
    encoder, video = load_encoder(made / "outputs" / "pretrain"), ps.prepare([clip])
    for budget in (None, 3):
        seen = encoder.encode(video, num_chunks=budget)
        truth = towers.embed_video(seen.tokens, seen.valid)[0]
        assert torch.allclose(ps.encode(clip, "language", num_chunks=budget), truth, atol=1e-5)
    run = polyspace.load(made / "outputs", device="cpu", num_chunks=3)
    assert torch.allclose(run.encode(clip, "language"), truth, atol=1e-5)
    assert run.classify(clip, k=6) == ps.classify(clip, k=6, head="probe", num_chunks=3)


def test_a_layer_can_learn_on_what_is_encoded(ps, clip):
    for space in ps.spaces:
        layer = torch.nn.Linear(ps.spaces[space], 2)
        layer(ps.encode([clip], space)).sum().backward()
        assert layer.weight.grad.abs().sum() > 0


def test_a_store_of_other_weights_is_not_asked(ps, made, clip, tmp_path):
    shutil.copytree(made / "features", tmp_path / "f")
    path = tmp_path / "f" / "features_hmdb51_train.json"
    about = read_json(path)
    for space in ("vivit", "hnet_vjepa"):
        about["spaces"][space]["digest"] = "other"
    path.write_text(json.dumps(about))
    for space in ("vivit", "hnet_vjepa"):
        with pytest.raises(UserError, match="other weights of"):
            ps.nearest(clip, path, space)
    assert len(ps.nearest(clip, path, "videomae", k=2)) == 2


def test_classes_neighbours_and_sentences(ps, made, clip):
    top = ps.classify(clip, k=3)
    assert len(top) == 3 and {name for name, _ in top} <= set(ps.classes)
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
    assert sum(p for _, p in ps.classify([clip], k=4)[0]) == pytest.approx(1, abs=1e-5)
    assert len(ps.classify(clip, head="probe", k=9)) == 6  # the probe's own classes
    store = made / "features" / "features_hmdb51_train.json"
    own = FeatureStore(store).ids
    for space in ("hnet_vjepa", "vivit"):
        found = ps.nearest(clip, store, space, k=4)
        assert len(found) == 4 and {n.id for n in found} <= set(own)
        assert all(a.score >= b.score for a, b in itertools.pairwise(found))
    first = FeatureStore(store).features("vivit")[2]
    assert ps.nearest(first, store, "vivit", k=1)[0].id == own[2]
    text = ps.embed_text(["a red square moves left", "nothing"])
    assert text.shape == (2, 16) and torch.allclose(text.norm(dim=1), torch.ones(2), atol=1e-5)


def test_a_round_trip_gives_the_same_bits(ps, made, clip, tmp_path):
    ps.save_pretrained(tmp_path / "again")
    shutil.move(tmp_path / "again", tmp_path / "moved")
    other = polyspace.PolySpace.from_pretrained(str(tmp_path / "moved"), device="cpu")
    for space in ps.spaces:
        assert torch.equal(other.encode(clip, space), ps.encode(clip, space))
    assert torch.equal(other.encode(clip, "vivit", tokens=True), ps.encode(clip, "vivit", tokens=True))
    assert other.classify(clip) == ps.classify(clip) and other.classify(clip, head="student") == ps.classify(
        clip, head="student"
    )
    a, b = (read_bundle(folder) for folder in (made / "bundle", tmp_path / "moved"))
    assert a["files"] == b["files"] and a["held_out"] == b["held_out"]


def test_the_model_card_tells_data_errors_and_limits(made):
    card = (made / "bundle" / "README.md").read_text()
    for word in ("self-supervised on generated", "held-out clips", "R²", "95 % interval", "## Limits", "chance 0.250"):
        assert word in card, word


def test_bad_videos_and_names_are_sentences(ps, clip, made, tmp_path):
    with pytest.raises(UserError, match="did you mean 'vivit'"):
        ps.encode(clip, "vivid")
    with pytest.raises(UserError, match="uint8 \\(T,H,W,3\\)"):
        ps.encode(torch.zeros(4, 3, 8, 8))
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"x\.mp4"):
        ps.encode(tmp_path / "x.mp4")
    with pytest.raises(UserError, match="head 'prob' is not in this bundle"):
        ps.classify(clip, head="prob")
    with pytest.raises(UserError, match="holds no space"):
        ps.nearest(clip, made / "features" / "features_hmdb51_train.json", "language")


def test_a_run_alone_is_ready_to_use(made, clip):
    run = polyspace.load(made / "outputs", device="cpu", num_chunks=4)
    assert run.spaces == {"hnet_vjepa": 32, "language": 16} and run.bundle.card.num_chunks == 4
    assert len(run.classify(clip, k=2)) == 2
    with pytest.raises(UserError, match="keeps the budget"):
        polyspace.load(made / "bundle", num_chunks=4)


def test_exports_are_the_same_functions(made, ps, clip, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    line = ["--bundle", str(made / "bundle"), "--out", str(tmp_path)]
    assert run_command(export_main, line) == 0
    assert "the encoder is left out" in capsys.readouterr().out and not (tmp_path / "encoder.pt2").exists()
    assert run_command(export_main, ["--bundle", str(made / "outputs"), "--out", str(tmp_path)]) == 2
    assert "give --num_chunks" in capsys.readouterr().err
    assert run_command(export_main, [*line, "--num_chunks", "5"]) == 0
    names = {"encoder.pt2", "videomae.onnx", "vivit.onnx", "vivit_tokens.onnx", "export.json"}
    assert {p.name for p in tmp_path.iterdir()} == names
    video = ps.prepare([clip, clip, clip])
    tokens, valid, feature = torch.export.load(tmp_path / "encoder.pt2").module()(video)
    assert tokens.shape == (3, 5, 32) and valid.all()
    assert torch.allclose(feature[0], ps.encode(clip, num_chunks=5), atol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "vivit.onnx"), providers=["CPUExecutionProvider"])
    own = ps.encode([clip])
    assert torch.allclose(
        torch.from_numpy(session.run(None, {"x": own.numpy()})[0]), ps.encode([clip], "vivit"), atol=1e-4
    )


def blocks(language):
    """The README's fenced blocks of a language."""
    parts = (REPOSITORY / "README.md").read_text().split("```")[1::2]
    return [part[len(language) :] for part in parts if part.startswith(language + "\n")]


def test_the_readmes_python_runs_as_it_stands(made, clip, monkeypatch, capsys):
    monkeypatch.chdir(made)
    shutil.copyfile(clip, "clip.mp4")
    given = {"video": torch.randn(1, 6, 24, 24, 3), "hidden": torch.zeros(1, 3, 3, dtype=torch.bool)}
    given |= {"cost": lambda actions: actions.square().sum((2, 3))}
    found = blocks("python")
    assert len(found) == 3
    for block in found:
        exec(compile(block, "README.md", "exec"), given)
    assert given["g"].shape == (27, 32) and given["plan"].shape == (1, 5, 7)


def test_every_command_of_the_readme_is_one_and_its_flags_parse(capsys):
    lines = [line for block in blocks("") for line in block.strip().splitlines() if not line.startswith("make ")]
    seen = set()
    for line in lines:
        words = shlex.split(line)
        if words[0] in ("torchrun", "deepspeed"):  # tests/train/test_ranks.py runs them
            words = ["python", *words[words.index("main.py") :]]
        if words[:2] == ["python", "-m"]:
            module, rest = words[2], words[3:]
        elif words[:2] == ["python", "main.py"]:
            module, rest = VERBS["train"][0], words[2:]
        else:
            assert words[0] == "polyspace" and words[1] in VERBS, line
            module, rest = VERBS[words[1]][0], words[2:]
        assert run_command(importlib.import_module(module).main, [*rest, "--no_such_flag"]) == 2
        assert capsys.readouterr().err.strip() == "error: unknown argument '--no_such_flag'", line
        seen.add(module)
    assert len(seen) >= 8


@pytest.mark.parametrize(
    "line",
    [
        "encode_a_clip.py clip.mp4 --bundle bundle --num_chunks 4",
        "reuse_a_teacher_head.py --bundle bundle --space vivit --train features/features_hmdb51_train.json "
        "--test features/features_hmdb51_train.json",
        "few_labels.py --bundle bundle --train features/features_hmdb51_train.json "
        "--test features/features_hmdb51_train.json --labels 1 --seeds 2",
        "move_an_index.py --features features/features_hmdb51_train.json --converters converters/converters_ep2.pt "
        "--space videomae --out moved --queries 5 --k 3",
        "look_at_chunks.py clip.mp4 --run outputs --budgets 6 3 --out chunks.png",
        "plan_with_cem.py --tasks reach",
    ],
)
def test_the_examples_run(made, clip, line, monkeypatch, capsys):
    monkeypatch.chdir(made)
    shutil.copyfile(clip, "clip.mp4")
    name, *words = line.split()
    if name == "plan_with_cem.py":
        pytest.importorskip("gym_pusht", reason="needs polyspace[robot]")
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(REPOSITORY / "examples" / name), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_clips_are_found_by_words_and_by_example_in_an_index(ps, made, clip, tmp_path, capsys):
    files = sorted((made / "data").rglob("*.avi"))[:10]
    (tmp_path / "broken.avi").write_bytes(b"no video")
    index = ps.index([*files[:5], tmp_path / "broken.avi", *files[5:]], tmp_path / "clips", "language")
    assert index.ids == [str(f) for f in files] and index.dim == 16
    assert "left out" in capsys.readouterr().err and len(index.about["failed"]) == 1
    found = ps.nearest(ps.embed_text("a red square moves left"), index, k=3)
    assert [n.score for n in found] == sorted((n.score for n in found), reverse=True) and len(found) == 3
    assert ps.nearest(files[3], tmp_path / "clips", k=1)[0].id == str(files[3])
    assert ps.nearest(files[3], made / "indexes" / "videomae", k=2)[0].score <= 1
    told = ps.index(files[:2], tmp_path / "vivit", "vivit").about["translated"]
    assert told["from"] == "hnet_vjepa" and told["expected"]["lost_variance"] == 1 - told["expected"]["r2"]
    assert index.about["translated"] is None
    with pytest.raises(UserError, match="is of space language, not vivit"):
        ps.nearest(clip, index, "vivit")
    with pytest.raises(UserError, match="none of the 1 videos"):
        ps.index([tmp_path / "broken.avi"], tmp_path / "none")
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        ps.index(files[:1], tmp_path / "none", metric="cosin")
    about = read_json(tmp_path / "vivit" / "index.json")
    about["backbone"]["digest"] = "other"
    (tmp_path / "vivit" / "index.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="other weights of vivit"):
        ps.nearest(clip, tmp_path / "vivit")


def test_a_clip_can_be_looked_at(ps, clip):
    frames, chunks = ps.look(clip)
    assert frames.shape == (6, 24, 24, 3) and frames.dtype == np.uint8
    assert chunks.owner.shape == (3, 3, 3) and chunks.tokens == len(chunks.centroids)
    back = (torch.from_numpy(frames).float() / 255 - torch.tensor(ps.bundle.card.plan.mean)) / torch.tensor(
        ps.bundle.card.plan.std
    )
    assert (back - ps.prepare([clip])[0]).abs().max() < 0.02
    _, fewer = ps.look(clip, num_chunks=4)
    assert fewer.tokens == 4
