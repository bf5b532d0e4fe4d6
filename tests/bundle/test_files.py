"""Bundles on disk: the same bits, older and newer forms, tampering, parts that don't fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import polyspace
from polyspace.bundle.files import VERSION, load_bundle, read_bundle, save_bundle
from polyspace.bundle.gather import gather
from polyspace.bundle.gather import main as bundle_main
from polyspace.config import run_command
from polyspace.models.spaces.converters import load_converters
from polyspace.utils.checkpoint_io import read_json, sha256_json, write_json
from polyspace.utils.errors import UserError


def rewritten(folder, **changes):
    """bundle.json with other words and a sum that fits them."""
    about = json.loads((folder / "bundle.json").read_text()) | changes
    about = {k: v for k, v in about.items() if k != "sha256" and v is not None}
    write_json(folder / "bundle.json", about | {"sha256": sha256_json(about)})


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made / "bundle", tmp_path / "copy")


def test_a_newer_bundle_is_refused_and_an_older_one_migrated(copy, clip, ps):
    rewritten(copy, format_version=VERSION + 1)
    with pytest.raises(UserError, match="format version 3; this release reads up to 2"):
        polyspace.load(copy)
    about = json.loads((copy / "bundle.json").read_text())
    parts = ("converters", "fusion")
    for name in ("token_converters.safetensors", "language", "probe"):
        place = copy / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    rewritten(
        copy,
        format_version=1,
        student=about["student"]["name"],
        checkpoint="student",
        sums={part: about["files"][f"{part}.safetensors"] for part in parts},
        **dict.fromkeys(("files", "sampling", "views", "order", "tokens_held_out", "phases")),
    )
    old = polyspace.load(copy, device="cpu")
    assert torch.equal(old.encode(clip, "vivit"), ps.encode(clip, "vivit")) and old.classify(clip) == ps.classify(clip)


def test_a_tampered_file_is_refused_before_anything_is_built(copy, tmp_path):
    fresh = sorted(p.relative_to(copy) for p in copy.rglob("*") if p.is_file() and p.name != "README.md")
    assert len(fresh) >= 9
    for name in fresh:
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        broken = shutil.copytree(copy, tmp_path / "x") / name
        data = bytearray(broken.read_bytes())
        data[len(data) // 2] ^= 1
        broken.write_bytes(data)
        with pytest.raises(UserError, match=r"damaged|not valid|is not"):
            read_bundle(tmp_path / "x")
    (copy / "converters.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        read_bundle(copy)


def test_a_pickle_in_place_of_tensors_is_not_executed(copy, tmp_path):
    code = f"import pickle\nclass Evil:\n  def __reduce__(self): return (open, ({str(tmp_path / 'ran')!r}, 'w'))\n"
    code += f"open({str(copy / 'converters.safetensors')!r}, 'wb').write(pickle.dumps(Evil()))"
    subprocess.run([sys.executable, "-c", code], check=True)
    about = read_json_file(copy)
    from polyspace.utils.checkpoint_io import sha256_file

    files = about["files"] | {"converters.safetensors": sha256_file(copy / "converters.safetensors")}
    rewritten(copy, files=files)  # even with a sum that fits
    with pytest.raises(UserError, match="converters"):
        load_bundle(copy)
    assert not (tmp_path / "ran").exists()
    rewritten(copy, files=files | {"../outside": "0" * 64})
    with pytest.raises(UserError, match="outside its folder"):
        read_bundle(copy)


def read_json_file(folder):
    return json.loads((folder / "bundle.json").read_text())


def test_parts_that_do_not_fit_are_sentences(made, tmp_path):
    bank, fusion = made / "converters" / "converters_ep2.pt", made / "fusion" / "fusion_ep2.pt"
    tokens = made / "tokens" / "converters_ep2.pt"
    with pytest.raises(UserError, match="needs its converters"):
        gather(fusion=fusion)
    with pytest.raises(UserError, match="needs converters, or a run"):
        gather()
    with pytest.raises(UserError, match="converts tokens"):
        gather(converters=tokens)
    with pytest.raises(UserError, match="holds no encoder"):
        gather(run=made / "features")
    with pytest.raises(UserError, match="is not a folder"):
        polyspace.load(made / "nowhere")
    other = shutil.copytree(made / "outputs" / "pretrain", tmp_path / "other")
    about = read_json(other / "encoder.json")
    (other / "encoder.json").write_text(json.dumps(about | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="belongs to other weights"):
        gather(converters=bank, student=str(other))


def test_a_bundle_classifies_as_the_files_it_was_made_of(made, tmp_path):
    """Spaces stand in no alphabetical order here, and the gates are open."""
    bank, _ = load_converters(made / "converters" / "converters_ep2.pt")
    assert list(bank.dims) == ["vivit", "videomae"]
    parts = gather(converters=made / "converters" / "converters_ep2.pt", fusion=made / "fusion" / "fusion_ep2.pt")
    assert parts.heads is not None
    fusion = parts.heads.heads["fusion"]
    torch.nn.init.normal_(fusion.gate.weight)
    save_bundle(parts, tmp_path / "x")
    x = torch.randn(5, 32)
    again = load_bundle(tmp_path / "x").heads
    assert all(torch.equal(again(x)[head], parts.heads(x)[head]) for head in ("fusion", "student"))


def test_what_an_older_bundle_left_goes_and_an_interrupted_one_is_none(copy, made):
    (copy / "student" / "extra.safetensors").write_bytes(b"x")
    save_bundle(gather(run=made / "outputs"), copy)
    assert sorted(p.name for p in copy.iterdir()) == ["README.md", "bundle.json", "language", "probe", "student"]
    assert load_bundle(copy).converters is None
    (copy / "bundle.json").unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_bundle(copy)


def test_a_student_that_stays_where_it_is_is_found_from_anywhere(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    save_bundle(gather(converters=Path("converters/converters_ep2.pt")), Path("thin"), with_student=False)
    assert not (made / "thin" / "student").exists()
    monkeypatch.chdir(tmp_path)
    assert load_bundle(made / "thin").card.digest == load_bundle(made / "bundle").card.digest
    shutil.move(made / "thin", tmp_path / "thin")
    with pytest.raises(UserError, match="say where"):
        load_bundle(tmp_path / "thin")
    assert load_bundle(tmp_path / "thin", student=str(made / "outputs")).converters is not None
    text = (tmp_path / "thin" / "README.md").read_text()
    assert str(made) not in text  # nobody's home is published


def test_phases_that_read_another_encoder_are_left_out_aloud(made, tmp_path, capsys):
    run = shutil.copytree(made / "outputs", tmp_path / "run")
    for name, change in (("language", {"encoder_sha256": "0"}), ("probe", {"pooling": "saliency"})):
        about = read_json(run / name / f"{name}.json")
        (run / name / f"{name}.json").write_text(json.dumps(about | change))
    assert gather(run=run).folders == {}
    said = capsys.readouterr().err
    assert "language of" in said and "another encoder" in said and "needs saliency labels" in said
    with pytest.raises(UserError, match="its own encoder"):
        gather(run=run, student="x")


def test_an_evaluation_of_something_else_is_refused(made, tmp_path, capsys):
    found = read_json(made / "fusion" / "eval_hmdb51_validation.json")
    (tmp_path / "other.json").write_text(json.dumps(found | {"classes": ["x"]}))
    (tmp_path / "none.json").write_text("{}")
    line = ["--converters", str(made / "converters" / "converters_ep2.pt"), "--out", str(tmp_path / "b")]
    line += ["--fusion", str(made / "fusion" / "fusion_ep2.pt"), "--evaluation"]
    assert run_command(bundle_main, [*line, str(tmp_path / "other.json")]) == 2
    assert "evaluates other weights or heads" in capsys.readouterr().err
    assert run_command(bundle_main, [*line, str(tmp_path / "none.json")]) == 2
    assert "is not an evaluation" in capsys.readouterr().err
