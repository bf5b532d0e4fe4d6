"""Files cut short or with a flipped bit: a sentence that names the file, or the same result; never another one."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import result
from test_loop import Toy, train

from polyspace.bundle.files import load_bundle
from polyspace.config import run_command
from polyspace.data.feature_store import FeatureStore
from polyspace.data.index import load_index
from polyspace.models.spaces.converters import load_converters
from polyspace.models.vjepa.saved import load_encoder
from polyspace.train import convert_index
from polyspace.utils.checkpoint_io import read_json, sha256_json, write_sealed
from polyspace.utils.errors import UserError

FLIPS = 40


def damages(path: Path):
    """(what, bytes): the file cut at several lengths, and with single bits flipped at random places."""
    whole = path.read_bytes()
    rng = random.Random(path.name)
    for length in sorted({0, 1, len(whole) // 10, len(whole) // 2, 9 * len(whole) // 10, len(whole) - 1}):
        yield f"cut to {length}", whole[:length]
    for _ in range(FLIPS):
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        yield f"bit {bit} of byte {place}", bytes(flipped)


def tensors(state) -> str:
    """A digest of nested containers with tensors."""
    if isinstance(state, dict):
        return sha256_json({str(k): tensors(v) for k, v in state.items()})
    if isinstance(state, list | tuple):
        return sha256_json([tensors(v) for v in state])
    return sha256_json([state.dtype.__repr__(), state.tolist()] if isinstance(state, torch.Tensor) else repr(state))


def read_store(path):
    store = FeatureStore(path.parent / "features_x_train.json")
    spaces = {name: store.features(name) for name in sorted(store.spaces)}
    return tensors([spaces, store.labels(), store.ids, store.groups, store.classes, store.manifest])


def read_converters(path):
    bank, about = load_converters(path)
    return tensors([dict(bank.state_dict()), about])


def read_index(path):
    index = load_index(path.parent)
    index.verify()
    return tensors([torch.from_numpy(index.vectors.copy()), index.ids, index.about])


def read_bundle(path):
    folder = next(p for p in path.parents if (p / "README.md").exists())
    bundle = load_bundle(folder)
    return tensors([dict(load_encoder(folder / "student").state_dict()), bundle.spaces, bundle.metrics])


def read_encoder(path):
    encoder = load_encoder(path.parent)
    return tensors([dict(encoder.state_dict()), read_json(path.parent / "encoder.json")])


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """Everything that can be damaged, in one folder."""
    place = tmp_path_factory.mktemp("whole")
    for file in ("c.pt", "features_x_train.json"):
        shutil.copy(runs.base / file, place)
    for shard in runs.base.glob("features_x_train-*.safetensors"):
        shutil.copy(shard, place)
    shutil.copytree(runs.base / "s", place / "s")
    shutil.copytree(runs.base / "run" / "pretrain", place / "encoder")
    from polyspace.bundle.gather import main as bundle

    assert run_command(bundle, ["--run", str(runs.base / "run"), "--out", str(place / "bundle")]) == 0
    return place


FILES = [
    ("features_x_train.json", read_store),
    ("features_x_train-*-00000.safetensors", read_store),
    ("c.pt", read_converters),
    ("s/index.json", read_index),
    ("s/vectors.npy", read_index),
    ("s/ids.json", read_index),
    ("bundle/bundle.json", read_bundle),
    ("bundle/student/encoder.safetensors", read_bundle),
    ("bundle/student/encoder.json", read_bundle),
    ("encoder/encoder.json", read_encoder),
    ("encoder/encoder.safetensors", read_encoder),
]


@pytest.mark.parametrize(("pattern", "read"), FILES, ids=[pattern for pattern, _ in FILES])
def test_a_damaged_file_is_named_or_reads_as_it_was(whole, tmp_path, pattern, read):
    place = shutil.copytree(whole, tmp_path / "copy")
    (path,) = place.glob(pattern)
    expected, content, refused = read(path), path.read_bytes(), 0
    for what, damaged in damages(path):
        path.write_bytes(damaged)
        try:
            assert read(path) == expected, f"{path.name}, {what}: another result, and nothing is said"
        except UserError as error:
            refused += 1
            assert path.name in str(error) or path.parent.name in str(error), f"{what}: {error}"
    path.write_bytes(content)
    assert refused >= 6 and read(path) == expected


@pytest.mark.parametrize("name", ["latest", "step_000012/model.safetensors", "step_000012/trainer.pt",
                                  "step_000012/checksums.json", "metrics.jsonl"])  # fmt: skip
def test_a_run_with_a_damaged_checkpoint_ends_in_the_same_bits_or_names_it(tmp_path, capsys, name):
    first = Toy()
    train(first, tmp_path / "run")
    for what, damaged in damages(tmp_path / "run" / name):
        place = shutil.copytree(tmp_path / "run", tmp_path / "copy")
        (place / name).write_bytes(damaged)
        again = Toy()
        try:
            train(again, place)
        except UserError as error:
            assert Path(name).name in str(error), what
        else:
            assert tensors(dict(again.state_dict())) == tensors(dict(first.state_dict())), what
        shutil.rmtree(place)
    capsys.readouterr()


@pytest.mark.parametrize("name", ["pipeline_manifest.json", "run.json"])
def test_a_finished_run_with_a_damaged_manifest_says_so_or_is_as_it_was(runs, tmp_path, monkeypatch, capsys, name):
    runs.expected("pretrain", monkeypatch)
    place = shutil.copytree(runs.sizes["pretrain"], tmp_path / "copy")
    monkeypatch.chdir(place)
    content = (place / "out" / name).read_bytes()
    tried = list(damages(place / "out" / name))
    for what, damaged in [*tried[:6], *tried[6::4]]:
        (place / "out" / name).write_bytes(damaged)
        capsys.readouterr()
        code, said = runs.run("pretrain"), capsys.readouterr().err
        if code:
            assert code == 2 and name in said and "Traceback" not in said, what
        else:
            known, found = json.loads(content), read_json(place / "out" / name) if name[0] == "p" else None
            assert name[0] == "r" or found == {k: v for k, v in known.items() if k != "seal"}, what
    (place / "out" / name).write_bytes(content)


def test_a_damaged_or_unfinished_part_of_a_store_is_made_again(runs, tmp_path, monkeypatch):
    from polyspace.data import featurize

    expected = runs.expected("featurize", monkeypatch)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(featurize, "_finish", lambda *_: (_ for _ in ()).throw(UserError("stopped")))
        assert runs.run("featurize") == 2
    parts = sorted(Path("out").glob(".*.partial/*.safetensors"))
    for part, (_, damaged) in zip(parts, list(damages(parts[0]))[::6], strict=False):
        part.write_bytes(damaged)  # also the content of another one
    assert len(parts) == 9 and runs.run("featurize") == 0 and result(tmp_path) == expected


def test_an_index_with_damaged_progress_is_made_again(runs, tmp_path, monkeypatch, capsys):
    expected = runs.expected("convert-index", monkeypatch)
    monkeypatch.chdir(tmp_path)
    record = convert_index.IndexWriter.record
    with monkeypatch.context() as patch:
        patch.setattr(
            convert_index.IndexWriter,
            "record",
            lambda self, rows, digest: record(self, rows, digest) if rows < 9000 else (_ for _ in ()).throw(OSError(5)),
        )
        assert runs.run("convert-index") == 2
    progress = Path(".out.partial/progress.json")
    progress.write_bytes(progress.read_bytes().replace(b"8000", b"7000"))
    assert runs.run("convert-index") == 0 and result(tmp_path) == expected
    assert "progress.json is damaged" in capsys.readouterr().err


def test_a_seal_is_compared_and_files_without_one_are_read_as_they_are(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, {"a": (1, 2), 3: float("nan"), "ü": None})
    value = read_json(path)
    assert value["a"] == [1, 2] and value["ü"] is None and "seal" not in value
    path.write_text(path.read_text().replace("1,", "7,"))
    with pytest.raises(UserError, match=r"x\.json is damaged"):
        read_json(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
