"""Making and moving indexes: what stands in them, and a sentence where they can't be right."""

import json

import numpy as np
import pytest
import torch
from conftest import run_fails, run_ok
from index_files import (
    MIX,
    E,
    config,
    files,
    make_converters,
    make_place,
    make_store,
    save_rows,
    sentence,
    student_rows,
)

from polyspace.config import run_command
from polyspace.data.index import load_index
from polyspace.models.spaces.converters import load_converters
from polyspace.train import convert_index as command
from polyspace.train.alignment.conversion import spans
from polyspace.train.convert_index import convert_index
from polyspace.train.export_index import main as export_main
from polyspace.utils.checkpoint_io import load_torch, read_json, save_torch, sha256_file
from polyspace.utils.errors import UserError

N = 500


@pytest.fixture
def place(tmp_path):
    return make_place(tmp_path)


def test_the_commands_run_as_typed(tmp_path):
    store = make_store(tmp_path, 41)
    make_converters(tmp_path / "c.pt")
    out = run_ok(f"polyspace export-index --features {store.path} --space s --out i/s", tmp_path).stdout
    assert "41 vectors of 6 dims, s, cosine -> i/s" in out
    done = run_ok("polyspace convert-index --index i/s --converters c.pt --space t --out i/t", tmp_path)
    about = load_index(tmp_path / "i/t").about
    lost = about["translated"]["expected"]["lost_variance"]
    assert f"expected error: {lost:.1%} of the variance of t" in done.stdout and "100 held-out clips" in done.stdout
    run_fails("polyspace convert-index --index i/s --converters c.pt --space u --out i/u", tmp_path, "known: t")


def test_a_moved_index_is_the_translation_of_every_vector_in_the_same_order(place):
    made = convert_index(config(place))
    bank, _ = load_converters(place / "c.pt")
    torch.testing.assert_close(torch.from_numpy(np.array(made.vectors)), bank["t"](student_rows(41)))
    assert made.ids == [f"c{i}" for i in range(41)]
    truth = (student_rows(41) @ MIX)[7]
    assert made.search(truth, 1)[1].tolist() == [7]


def test_a_second_run_changes_nothing_and_other_settings_need_overwrite(place):
    made = convert_index(config(place))
    before, written = files(made.folder), made.array.stat().st_mtime_ns
    convert_index(config(place))
    with pytest.raises(UserError, match="made with another batch, metric; give --overwrite"):
        convert_index(config(place, batch=5, metric="l2"))
    assert files(made.folder) == before and made.array.stat().st_mtime_ns == written
    assert convert_index(config(place, metric="l2", overwrite=True)).metric == "l2"


def test_an_export_through_converters_equals_a_moved_export(place, tmp_path):
    only = make_store(tmp_path / "only", 41, teacher=False)
    line = f"--features {only.path} --space t --converters {place}/c.pt --out {tmp_path}/direct"
    assert export_main(line.split()) == 0
    direct, moved = load_index(tmp_path / "direct"), convert_index(config(place))
    np.testing.assert_allclose(direct.vectors, moved.vectors, rtol=1e-5, atol=1e-6)
    assert direct.about["translated"] == moved.about["translated"] and direct.ids == moved.ids


def test_what_made_the_vectors_and_the_error_to_expect_stand_in_the_index(place):
    own, moved = load_index(place / "s").about, convert_index(config(place)).about
    assert own["backbone"]["checkpoint"] == "hub/s" and own["translated"] is None and own["stand_in"] is False
    assert moved["backbone"]["digest"] == "digest of t" and moved["student"] == "s" and moved["dim"] == E
    held = load_torch(place / "c.pt")["held_out"]["t"]
    found, scores = moved["translated"]["expected"], held["kinds"]["ridge"]
    assert found["r2"] == scores["r2"] and found["knn_overlap"] == scores["knn_overlap"]
    assert found["lost_variance"] == 1 - scores["r2"] and found["held_out"] == 100
    assert moved["sha256"]["vectors.npy"] == sha256_file(place / "t" / "vectors.npy")
    assert moved["translated"]["converters_sha256"] == sha256_file(place / "c.pt")


def test_stand_ins_are_named_and_unknown_errors_are_said(place, capsys):
    make_converters(place / "c.pt", backend="identity")
    assert command.main(f"--index {place}/s --converters {place}/c.pt --space t --out {place}/t".split()) == 0
    assert load_index(place / "t").about["stand_in"] is True and "stand-ins: t" in capsys.readouterr().out
    content = load_torch(place / "c.pt")
    save_torch(place / "c.pt", content | {"held_out": {}})
    assert command.main(f"--index {place}/s --converters {place}/c.pt --space t --out {place}/u".split()) == 0
    assert load_index(place / "u").about["translated"]["expected"] is None
    assert "the error to expect is unknown" in capsys.readouterr().err


def test_bare_arrays_of_float32_and_float16_are_moved(place):
    x = student_rows(N)
    whole = convert_index(config(place, index=save_rows(place / "a.npy", x), out=place / "a", rows=64, batch=24))
    half = convert_index(config(place, index=save_rows(place / "b.npy", x, "float16"), out=place / "b", metric="l2"))
    bank, _ = load_converters(place / "c.pt")
    np.testing.assert_allclose(whole.vectors, bank["t"](x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(half.vectors, bank["t"](x.half().float()), rtol=1e-5, atol=1e-6)
    assert whole.ids is None and half.metric == "l2" and half.vectors.dtype == np.float32


def test_batches_fill_blocks_and_never_cross_their_ends():
    assert list(spans(11, 5, 3)) == [(0, 3), (3, 5), (5, 8), (8, 10), (10, 11)]
    assert list(spans(2, 5, 3)) == [(0, 2)]


def test_a_row_that_is_not_finite_is_named_and_nothing_is_left(place, capsys):
    x = student_rows(N)
    line = f"--index {place}/x.npy --converters {place}/c.pt --space t --out {place}/k --rows 64 --batch 16"
    for value in (float("nan"), float("inf")):
        x[333, 2] = value
        save_rows(place / "x.npy", x)
        assert "row 333 of" in sentence(command.main, line, capsys)
        assert not (place / "k").exists() and not (place / ".k.partial").exists()
    x[333, 2] = 3e38
    x[334, 2] = 3e38  # their sum is not finite, they are
    save_rows(place / "x.npy", x)
    assert run_command(command.main, line.split()) == 0


def test_a_damaged_index_is_noticed_while_it_is_moved(place, capsys):
    data = bytearray((place / "s" / "vectors.npy").read_bytes())
    data[-1] ^= 1
    (place / "s" / "vectors.npy").write_bytes(bytes(data))
    line = f"--index {place}/s --converters {place}/c.pt --space t --out {place}/t"
    assert "vectors.npy is damaged: its sha256" in sentence(command.main, line, capsys)
    assert not (place / "t").exists()
    assert command.main(f"{line} --no-verify".split()) == 0


def test_converters_that_do_not_fit_the_index_are_a_sentence(place, capsys):
    line = f"--index {place}/s --converters {place}/c.pt --space t --out {place}/t"
    about = read_json(place / "s" / "index.json")
    other = about | {"backbone": about["backbone"] | {"digest": "another"}}
    (place / "s" / "index.json").write_text(json.dumps(other))
    assert "fitted on other weights of s" in sentence(command.main, line, capsys)
    (place / "s" / "index.json").write_text(json.dumps(about | {"space": "t"}))
    assert "converts from s, but" in sentence(command.main, line, capsys)
    (place / "s" / "index.json").write_text(json.dumps(about))
    assert "no converter to it; known: t" in sentence(command.main, line.replace("space t", "space q"), capsys)
    moved = config(place, out=place / "moved")
    convert_index(moved)
    twice = sentence(command.main, line.replace(f"{place}/s", f"{place}/moved"), capsys)
    assert "holds translations from s" in twice
    content = load_torch(place / "c.pt")
    save_torch(place / "c.pt", content | {"tokens": True})
    assert "converts tokens" in sentence(command.main, line, capsys)


def test_what_is_no_index_is_a_sentence(place, capsys):
    line = f"--index {place}/s --converters {place}/c.pt --space t --out {place}/t"

    def told(path):
        return sentence(command.main, line.replace(f"{place}/s ", f"{path} "), capsys)

    save_rows(place / "five.npy", torch.randn(3, 5))
    assert "has 5 dims" in told(place / "five.npy") and "converts from s with 6" in told(place / "five.npy")
    assert "does not exist" in told(place / "nowhere.npy")
    assert "is not an index" in told(place)
    assert "neither the folder of an index nor a .npy file" in told(place / "c.pt")
    (place / "text.npy").write_text("hello")
    assert "not a whole .npy file" in told(place / "text.npy")
    (place / "file").write_text("")
    assert "is a file" in sentence(command.main, line.replace(f"{place}/t", f"{place}/file"), capsys)


def test_an_index_s_own_array_is_taken_as_the_index(place):
    assert convert_index(config(place, index=place / "s" / "vectors.npy")).ids == [f"c{i}" for i in range(41)]


def test_exports_that_can_not_be_right_are_a_sentence(place, capsys):
    line = f"--features {place}/features_x_train.json --space t --out {place}/e"
    with_converters = f"{line} --converters {place}/c.pt"
    assert "holds t itself; leave out --converters" in sentence(export_main, with_converters, capsys)
    assert "no --converters are given" in sentence(export_main, line.replace("space t", "space u"), capsys)
    assert "--metric" in sentence(export_main, f"{line} --metric dot", capsys)
    assert not (place / "e").exists()


def test_a_result_is_not_put_where_its_source_lies(place, capsys):
    line = f"--index {place}/s --converters {place}/c.pt --space t --out {place}/s --overwrite"
    assert "where the vectors to convert lie" in sentence(command.main, line, capsys)
