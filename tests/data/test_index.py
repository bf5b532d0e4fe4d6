"""Reading an index: checked when opened, searched exactly, with or without FAISS."""

import json
import sys

import numpy as np
import pytest
import torch
from index_files import D, files, make_store, save_rows, student_rows

from polyspace.data import index as index_module
from polyspace.data.index import load_index
from polyspace.train.export_index import ExportConfig, export_index
from polyspace.utils.array_file import ArrayReader, ArrayWriter
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError

N = 57


def exported(folder, n=N, **more):
    store = make_store(folder, n)
    return export_index(ExportConfig(features=store.path, space="s", out=folder / "index", **more))


@pytest.fixture(params=["cosine", "l2"])
def index(request, tmp_path):
    return exported(tmp_path, metric=request.param)


def test_ids_stand_in_the_order_of_the_vectors(tmp_path):
    made = exported(tmp_path)
    assert made.ids == [f"c{i}" for i in range(N)]
    assert isinstance(made.vectors, np.memmap) and np.array_equal(made.vectors, student_rows(N).numpy())


def _brute_force(x, q, metric, k):
    """Row by row, in float64."""
    if metric == "cosine":
        each = [[(a @ b / (a.norm() * b.norm())).item() for b in x.double()] for a in q.double()]
        order = [sorted(range(len(x)), key=lambda i: -row[i])[:k] for row in each]
    else:
        each = [[(a - b).square().sum().item() for b in x.double()] for a in q.double()]
        order = [sorted(range(len(x)), key=row.__getitem__)[:k] for row in each]
    return torch.tensor([[row[i] for i in o] for row, o in zip(each, order, strict=True)]), torch.tensor(order)


@pytest.mark.parametrize("floats", [1 << 23, 5 * D])
def test_search_finds_what_comparing_every_row_finds(index, monkeypatch, floats):
    monkeypatch.setattr(index_module, "SEARCH_FLOATS", floats)
    x, q = student_rows(N), student_rows(3, seed=9)
    scores, rows = index.search(q, 7)
    true_scores, true_rows = _brute_force(x, q, index.metric, 7)
    assert torch.equal(rows, true_rows)
    torch.testing.assert_close(scores, true_scores.float(), atol=1e-6, rtol=1e-5)


def test_one_query_gives_one_row_and_numpy_is_welcome(index):
    q = student_rows(2, seed=9)
    scores, rows = index.search(q, 4)
    one_scores, one_rows = index.search(q[1].numpy(), 4)
    assert one_rows.shape == (4,) and torch.equal(one_rows, rows[1])
    torch.testing.assert_close(one_scores, scores[1])


def test_a_row_finds_itself_first_and_more_than_all_rows_are_all_rows(index):
    x = student_rows(N)
    assert torch.equal(index.search(x, 1)[1][:, 0], torch.arange(N))
    assert index.search(x[0], 1000)[1].sort().values.tolist() == list(range(N))


def test_small_distances_between_large_vectors_are_told_apart(tmp_path):
    made = exported(tmp_path, n=5, metric="l2")
    rows = np.full((5, D), 1000.0, np.float32)
    rows[:, 0] += np.array([4, 1, 3, 0.5, 2], np.float32) / 64
    np.save(made.array, rows)
    scores, found = made.search(rows[3], 5)
    assert found.tolist() == [3, 1, 4, 2, 0]
    assert scores.tolist() == pytest.approx([0, 2**-14, (1.5 / 64) ** 2, (2.5 / 64) ** 2, (3.5 / 64) ** 2], abs=0)


def test_a_query_that_does_not_fit_is_a_sentence(index):
    with pytest.raises(UserError, match="it has 6 dims"):
        index.search(torch.zeros(5), 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(torch.zeros(D), 0)


def test_faiss_finds_the_same_rows(tmp_path):
    faiss = pytest.importorskip("faiss")
    for metric in ("cosine", "l2"):
        made = exported(tmp_path / metric, metric=metric, format="faiss")
        flat = faiss.read_index(str(made.folder / "index.faiss"))
        q = student_rows(6, seed=3)
        given = torch.nn.functional.normalize(q, dim=1) if metric == "cosine" else q
        scores, rows = made.search(q, 8)
        near, at = flat.search(given.numpy(), 8)
        assert flat.ntotal == N and np.array_equal(at, rows.numpy())
        np.testing.assert_allclose(near, scores.numpy(), atol=2e-5)


def test_without_faiss_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'polyspace\[index\]'"):
        exported(tmp_path, format="faiss")
    assert not (tmp_path / "index").exists()


def test_what_is_not_a_whole_index_is_refused(tmp_path):
    made = exported(tmp_path)
    about = made.folder / "index.json"
    content = read_json(about)
    made.verify()

    def refused(words):
        with pytest.raises(UserError, match=words):
            load_index(made.folder)

    about.write_text(json.dumps(content | {"format_version": 9}))
    refused("format version 9")
    about.write_text(json.dumps(content | {"rows": 3}))
    refused(r"says float32 \(3, 6\)")
    about.write_text(json.dumps({k: v for k, v in content.items() if k != "metric"}))
    refused("lacks metric")
    about.write_text("{}")
    refused("does not describe an index")
    about.unlink()
    refused(r"is not an index: it has no index\.json")


def test_verify_notices_a_flipped_bit(tmp_path):
    made = exported(tmp_path)
    data = bytearray(made.array.read_bytes())
    data[-1] ^= 1
    made.array.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"vectors\.npy is damaged"):
        load_index(made.folder).verify()


def test_arrays_of_another_kind_are_refused(tmp_path):
    for name, value, words in (
        ("a", np.zeros((3, 2)), "float64"),
        ("b", np.zeros(3, np.float32), r"\(3,\)"),
        ("c", np.asfortranarray(np.ones((3, 2), np.float32)), "Fortran"),
        ("d", np.zeros((0, 2), np.float32), "no vectors"),
        ("e", np.array([{}], object), "not a whole"),
    ):
        np.save(tmp_path / f"{name}.npy", value)
        with pytest.raises(UserError, match=words):
            ArrayReader(tmp_path / f"{name}.npy")
    whole = save_rows(tmp_path / "f.npy", student_rows(9)).read_bytes()
    (tmp_path / "f.npy").write_bytes(whole[:-3])
    with pytest.raises(UserError, match="not a whole"):
        ArrayReader(tmp_path / "f.npy")


def test_an_array_written_in_parts_is_what_numpy_writes(tmp_path):
    rows = student_rows(9).numpy()
    np.save(tmp_path / "a.npy", rows)
    with ArrayWriter(tmp_path / "b.npy", 9, D) as array:
        array.write(0, rows[:5])
        assert (tmp_path / "b.npy").stat().st_size == (tmp_path / "a.npy").stat().st_size
        before = array.sha256
        with pytest.raises(AssertionError):
            array.write(6, rows[6:])
    with ArrayWriter(tmp_path / "b.npy", 9, D, done=5) as array:
        assert array.sha256 == before
        array.write(5, rows[5:])
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()
    with ArrayReader(tmp_path / "b.npy") as reader:
        part = np.empty((4, D), np.float32)
        reader.read(3, part)
    assert np.array_equal(part, rows[3:7])


def test_a_second_export_changes_nothing_and_other_settings_need_overwrite(tmp_path):
    made = exported(tmp_path)
    before, time = files(made.folder), made.array.stat().st_mtime_ns
    config = ExportConfig(features=tmp_path / "features_x_train.json", space="s", out=tmp_path / "index")
    assert export_index(config).array.stat().st_mtime_ns == time
    with pytest.raises(UserError, match="made with another metric; give --overwrite"):
        export_index(config.model_copy(update={"metric": "l2"}))
    assert files(made.folder) == before
    assert export_index(config.model_copy(update={"metric": "l2", "overwrite": True})).metric == "l2"
    (tmp_path / "index" / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"holds other files \(mine\.txt\)"):
        export_index(config.model_copy(update={"overwrite": True}))
