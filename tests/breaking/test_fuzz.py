"""Files that were changed, and files made to harm: a sentence or a right result, and nothing else."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fuzz_readers import READERS as BROUGHT
from fuzz_readers import make_lerobot, make_listed, png, write_packets
from fuzz_saved import SAVED, seal

from polyspace.bundle.files import read_bundle
from polyspace.config import apply_set, read_yaml
from polyspace.data import build_dataset
from polyspace.data.episodes import build_episodes
from polyspace.data.feature_store import FeatureStore
from polyspace.data.frames import decode_image
from polyspace.data.index import load_index
from polyspace.data.video import VideoError, VideoReader
from polyspace.models.backbones.checkpoints import find_checkpoint
from polyspace.models.vjepa.saved import load_encoder
from polyspace.train.checkpoint import latest_step
from polyspace.utils.array_file import ArrayReader
from polyspace.utils.checkpoint_io import load_tensors, load_torch, read_json, save_torch
from polyspace.utils.errors import UserError
from polyspace.utils.reading import MAX_DEPTH

REPOSITORY = Path(__file__).parents[2]
DEEP = 100_000


def campaign(cases: int, readers, library: Path) -> None:
    line = [sys.executable, "bench/fuzz.py", "--cases", str(cases), "--library", str(library), "--seed", "1000000"]
    path = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "bench")))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([*line, "--readers", *readers], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_changed_videos_and_annotations_are_read_or_refused(tmp_path):
    campaign(24, [name for name in BROUGHT if name != "video_real"], tmp_path)


def test_changed_files_of_ours_are_read_or_refused(made):
    campaign(16, [name for name, reader in SAVED.items() if reader.rare == 1], made)


@pytest.mark.slow
def test_many_changed_files_are_read_or_refused(made):
    campaign(150, [*BROUGHT, *SAVED], made)


# -- videos and images -------------------------------------------------------------------------------------------------


def test_a_frame_that_is_absurdly_large_is_refused_wherever_that_is_said(tmp_path):
    small, large = png(16, 16), png(12336, 12336)
    hidden = write_packets(tmp_path / "hidden.mov", [large] * 2, 16, 16)
    with pytest.raises(VideoError, match=r"absurd frame size|decode error"), VideoReader(hidden) as video:
        video.read([0])
    late = write_packets(tmp_path / "late.mov", [small, small, large], 16, 16)
    with VideoReader(late) as video:
        assert video.read([0, 1]).shape == (2, 16, 16, 3)
        with pytest.raises(IndexError, match="beyond the last of 2"):
            video.read([2])
        assert "decode error after 2 frames" in video.damage
    with pytest.raises(VideoError, match=r"absurd image size|DecompressionBomb"):
        decode_image(large, tmp_path / "x.png")


def test_a_size_that_only_the_head_has_costs_nothing(tmp_path):
    path = write_packets(tmp_path / "declared.mov", [png(16, 16)] * 3, 12336, 12336)
    with VideoReader(path) as video:
        assert video.read([0, 2]).shape == (2, 16, 16, 3)


# -- JSON and YAML -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * DEEP + "]" * DEEP, "not valid JSON"),
        ('{"a":' * DEEP + "1" + "}" * DEEP, "not valid JSON"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "levels deep"),
        ("1" * 5000, "not valid JSON"),
        (r'{"id": "\ud800"}', "half a character"),
        ("\x00", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_json_that_no_program_could_use_is_a_sentence(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=rf"x\.json.*{words}"):
        read_json(tmp_path / "x.json")


def test_json_of_ordinary_depth_and_whole_characters_is_read(tmp_path):
    value = {"a": [[[{"b": "\N{GRINNING FACE}"}]]], "n": None}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "x.json", form=dict[str, list | None]) == value
    with pytest.raises(UserError, match=r"x\.json is not of the form expected: n None"):
        read_json(tmp_path / "x.json", form=dict[str, list])


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    "text",
    [
        "work_dir: !!python/object/apply:os.makedirs [{out}]",
        "work_dir: !!python/object/new:os.makedirs [{out}]",
        LAUGHS,
        "a: &a [*a]",
        "[" * 20_000,
        "a: 9999999-99-99 99:99:99",
        "a: !!timestamp 2001-99-99",
    ],
)
def test_yaml_that_would_execute_or_grow_is_a_sentence(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text.replace("{out}", str(tmp_path / "executed")))
    try:
        assert yaml.safe_dump(read_yaml(tmp_path / "x.yaml"))
    except UserError as error:
        assert "x.yaml" in str(error)
    assert not (tmp_path / "executed").exists()


def test_a_value_of_set_is_no_program(tmp_path):
    with pytest.raises(UserError, match="--set a=!!python"):
        apply_set({}, [f"a=!!python/object/apply:os.makedirs [{tmp_path}/executed]"])
    assert not (tmp_path / "executed").exists()


# -- tensors -----------------------------------------------------------------------------------------------------------


class Harm:
    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self):
        return os.makedirs, (self.place,)


def test_a_pickle_in_a_torch_file_is_not_executed(tmp_path):
    harm = pickle.dumps({"format": Harm(tmp_path / "executed")}, protocol=2)
    (tmp_path / "plain.pt").write_bytes(harm)
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as source, zipfile.ZipFile(tmp_path / "zip.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, harm if name.endswith("data.pkl") else source.read(name))
    for name in ("plain.pt", "zip.pt"):
        with pytest.raises(UserError, match=rf"{name} is damaged or not a file of ours"):
            load_torch(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_torch_file_is_no_larger_in_memory_than_on_the_disk(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.pt")
    squeezed = zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "good.pt") as source, squeezed as target:
        for name in source.namelist():
            target.writestr(name, bytes(1 << 26) if name.endswith("data/0") else source.read(name))
    save_torch(tmp_path / "wide.pt", {"weight": torch.zeros(1).expand(1 << 40)})
    for name in ("bomb.pt", "wide.pt"):
        with pytest.raises(UserError, match=f"{name} is damaged"):
            load_torch(tmp_path / name)
    assert load_torch(tmp_path / "good.pt")["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", (1 << 64) - 1) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", DEEP) + b"[" * DEEP,
    ],
)
def test_a_safetensors_head_that_lies_is_a_sentence(tmp_path, head):
    (tmp_path / "x.safetensors").write_bytes(head)
    with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
        load_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("entry", [{"shape": [1 << 40], "dtype": "F32", "data_offsets": [0, 4]},
                                   {"shape": [1], "dtype": "F32", "data_offsets": [0, 1 << 62]},
                                   {"shape": [1], "dtype": "F32", "data_offsets": [4, 0]},
                                   {"shape": [1 << 62, 4], "dtype": "F32", "data_offsets": [0, 0]}])  # fmt: skip
def test_a_tensor_that_is_not_where_the_head_says_is_a_sentence(tmp_path, entry):
    head = json.dumps({"x": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
        load_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("shape", ["(1099511627776, 64)", "(9223372036854775807, 9223372036854775807)", "(-1, 4)"])
def test_an_array_that_declares_terabytes_is_a_sentence(tmp_path, shape):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(64))
    with pytest.raises(UserError, match=r"x\.npy is not a whole"):
        ArrayReader(tmp_path / "x.npy")


def test_an_encoder_is_as_large_as_its_file_and_not_as_its_words(made, tmp_path):
    place = tmp_path / "pretrain"
    place.mkdir()
    for name in ("encoder.json", "encoder.safetensors"):
        (place / name).write_bytes((made / "outputs" / "pretrain" / name).read_bytes())
    about = json.loads((place / "encoder.json").read_text())
    wrong = {"dim": 1 << 40, "depth": 1 << 30, "cell_dim": 1 << 15, "heads": 0, "unit": -8, "unit_frames": 2.5}
    for key, value in wrong.items():
        changed = about | {"encoder": about["encoder"] | {key: value}}
        (place / "encoder.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"encoder|pretrain"):
            load_encoder(place)


def test_tables_that_declare_more_than_they_hold_are_left_out(tmp_path):
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "lab" / "day"
    folder.mkdir(parents=True)
    (folder / "metadata_x.json").write_text("{}")
    with h5py.File(folder / "trajectory.h5", "w") as file:
        group = file.create_group("observation/robot_state")
        group.create_dataset("cartesian_position", (1 << 40, 6), "f8", chunks=(64, 6))
        group.create_dataset("gripper_position", (1 << 40,), "f8", chunks=(64,))
    with pytest.raises(UserError, match="says that it has 6597069766656 numbers"):
        build_episodes(tmp_path)


def test_a_parquet_file_of_billions_of_repeats_is_not_read(tmp_path, monkeypatch):
    from polyspace.data import lerobot_meta

    make_lerobot("v3", tmp_path, tmp_path)
    monkeypatch.setattr(lerobot_meta, "MAX_ROWS", 10)
    with pytest.raises(UserError, match=r"file-000\.parquet says that it has 19 rows"):
        build_episodes(tmp_path)


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.avi", "/etc/passwd", "a/../../secret.avi", "..\\secret.avi"])
def test_no_annotation_leaves_its_root(tmp_path, name):
    root = tmp_path / "root"
    make_listed(root, tmp_path)
    (tmp_path / "secret.avi").write_bytes(b"x")
    (root / "list.csv").write_text(f'path,label\n"{name}",a\n')
    with pytest.raises(UserError, match="outside --root"):
        build_dataset("videofolder", root, "train", list_file=root / "list.csv")


def test_a_name_that_no_system_has_is_a_missing_clip(tmp_path):
    make_listed(tmp_path, tmp_path)
    (tmp_path / "list.csv").write_text(f"path,label\na/x.avi,a\n{'n' * 5000}.avi,a\n")
    data = build_dataset("videofolder", tmp_path, "train", list_file=tmp_path / "list.csv")
    assert len(data.records) == 1 and len(data.missing) == 1


def test_no_manifest_names_a_file_outside_its_folder(made, tmp_path):
    about = read_json(made / "features" / "features_hmdb51_train.json")
    about["shards"][0]["file"] = "../" + about["shards"][0]["file"]
    (tmp_path / "s.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="names a shard outside its folder"):
        FeatureStore(tmp_path / "s.json")

    SAVED["index"].make(tmp_path, made)
    file = tmp_path / "indexes" / "videomae" / "index.json"
    about = json.loads(file.read_text())
    about["sha256"]["../../../x"] = "0" * 64
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match="names a file that no index has"):
        load_index(file.parent)

    SAVED["bundle"].make(tmp_path, made)
    file = tmp_path / "bundle" / "bundle.json"
    about = json.loads(file.read_text())
    for change in ({"files": about["files"] | {"../x": "0" * 64}}, {"phases": ["../../outputs"]}):
        file.write_text(json.dumps(about | change))
        seal(tmp_path, file)
        with pytest.raises(UserError, match=r"outside its folder|phases"):
            read_bundle(file.parent)


def test_a_link_in_a_bundle_gives_nothing_but_what_its_sum_is_of(made, tmp_path):
    SAVED["bundle"].make(tmp_path, made)
    secret = tmp_path / "secret"
    secret.write_text("x")
    part = tmp_path / "bundle" / "fusion.safetensors"
    part.unlink()
    part.symlink_to(secret)
    with pytest.raises(UserError, match=r"fusion.safetensors is damaged"):
        read_bundle(tmp_path / "bundle")


def test_a_checkpoint_names_no_file_outside_its_folder(made, tmp_path):
    SAVED["backbone"].make(tmp_path, made)
    place = tmp_path / "backbones" / "videomae"
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../x.safetensors"}}))
    with pytest.raises(UserError, match="names one outside its folder"):
        find_checkpoint(str(place))
    for text in ("../../x", "", "step_1/../..", "step_x"):
        (tmp_path / "latest").write_text(text)
        with pytest.raises(UserError, match="which is no step"):
            latest_step(tmp_path)
    np.testing.assert_equal(latest_step(_with(tmp_path, "step_000012\n")), "step_000012")


def _with(folder: Path, text: str) -> Path:
    (folder / "latest").write_text(text)
    return folder
