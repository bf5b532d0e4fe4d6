"""TFRecord framing, checksums and messages; RLDS episodes, real and damaged."""

import io
import json
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
from robot_files import walk

from polyspace.data.droid import rotation_from_euler
from polyspace.data.episodes import build_episodes, windows
from polyspace.data.tfrecord import RecordError, crc32c, masked_crc, parse_example, read_records, write_record
from polyspace.utils.errors import UserError

SHARD = "bridge_dataset-train.first12.tfrecord"


@pytest.fixture
def bridge(real_data, tmp_path):
    """A copy of the real shard that may be damaged."""
    root = tmp_path / "bridge"
    shutil.copytree(real_data / "bridge_rlds", root)
    for path in [root, *root.iterdir()]:
        path.chmod(0o755)
    return root


# -- the real file -----------------------------------------------------------------------------------------------------


def test_the_real_bridge_file_has_12_episodes_of_10_steps(real_data):
    data = build_episodes(real_data / "bridge_rlds")
    assert data.layout == "rlds" and data.name == "bridge_dataset" and len(data.records) == 12 and not data.left_out
    for number, record in enumerate(data.records):
        assert record.id == f"{SHARD}#{number}" and len(record) == 10 and record.fps == 5.0
        assert list(record.cameras) == ["image_0", "image_1", "image_2"]  # image_3 is black throughout
        assert record.states.shape == (10, 7) and record.actions.shape == (9, 7)
        for camera in record.cameras.values():
            frames = camera.read(range(10))
            assert frames.shape == (10, 64, 64, 3) and frames.float().std() > 20
        assert windows(record, 8) == [0, 1, 2]
        assert record.states[:, :3].abs().max() < 1 and record.group.endswith("out.npy")
    assert data.records[0].text == "put cup from counter or drying rack into sink"
    assert len({r.group for r in data.records}) == 4
    assert data.notes[0].endswith("#0: camera image_3 holds one flat colour, so nothing")
    assert data.notes[-1].endswith("dataset_info.json tells of 25 episodes, 12 are here")


def test_bridge_rotations_recompose_and_recorded_actions_command_the_change_of_a_step(real_data):
    found, commanded = [], []
    for record in build_episodes(real_data / "bridge_rlds").records:
        rotation, turn = rotation_from_euler(record.states[:, 3:6]), rotation_from_euler(record.actions[:, 3:6])
        assert (turn @ rotation[:-1] - rotation[1:]).abs().max() < 1e-6
        assert record.recorded.values.shape == (10, 7) and "commanded change" in record.recorded.meaning
        assert record.recorded.values[:, 6].min() >= 0 and record.recorded.values[:, 6].max() <= 1
        found.append(record.actions)
        commanded.append(record.recorded.values[:-1])
    found, commanded = torch.cat(found), torch.cat(commanded)
    for axis in range(3):  # metres moved follow metres commanded, and are as many
        pair = torch.corrcoef(torch.stack([found[:, axis], commanded[:, axis]]))[0, 1]
        assert pair > 0.7 and 0.7 < found[:, axis].abs().sum() / commanded[:, axis].abs().sum() < 1.4


def test_images_are_what_the_jpeg_says(real_data):
    image = pytest.importorskip("PIL.Image")
    record = build_episodes(real_data / "bridge_rlds", camera="image_1").records[3]
    (shard,) = (real_data / "bridge_rlds").glob("*.tfrecord")
    data = list(read_records(shard))[3].data
    jpegs = parse_example(data)["steps/observation/image_1"]
    expected = np.stack([np.asarray(image.open(io.BytesIO(j))) for j in (jpegs[9], jpegs[2], jpegs[9])])
    assert list(record.cameras) == ["image_1"]
    assert np.array_equal(record.cameras["image_1"].read([9, 2, 9]).numpy(), expected)
    again = pickle.loads(pickle.dumps(record))  # as it goes to a worker process
    assert np.array_equal(again.frames("image_1", 2, 1)[0].numpy(), expected[1])
    with pytest.raises(IndexError, match="beyond the last of 10 frames"):
        record.cameras["image_1"].read([10])


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_caught_and_only_its_record_left_out(bridge):
    file = bridge / SHARD
    records = list(read_records(file))
    data = bytearray(file.read_bytes())
    data[records[4].offset + 5000] ^= 1
    file.write_bytes(data)
    found = build_episodes(bridge)
    assert len(found.records) == 11
    assert list(found.left_out) == [f"{SHARD}#4"]
    assert f"record at byte {records[4].offset} fails its checksum" in found.left_out[f"{SHARD}#4"]


def test_a_flipped_length_and_a_cut_file_lose_what_follows_and_say_so(bridge):
    file = bridge / SHARD
    whole = file.read_bytes()
    offset = list(read_records(file))[3].offset
    file.write_bytes(whole[: offset + 1000])
    found = build_episodes(bridge)
    assert len(found.records) == 3 and "the file ends within the record" in found.left_out[f"{SHARD}#3"]
    damaged = bytearray(whole)
    damaged[offset + 6] ^= 0x40  # a length of 2^54 bytes more
    file.write_bytes(damaged)
    found = build_episodes(bridge)
    assert len(found.records) == 3 and "what follows is lost" in found.left_out[f"{SHARD}#3"]
    file.write_bytes(whole[:7])
    with pytest.raises(UserError, match=r"none of its 1 episodes can be used.*ends within the record at byte 0"):
        build_episodes(bridge)


def test_a_record_that_is_damaged_later_is_a_named_error(bridge):
    record = build_episodes(bridge).records[5]
    data = bytearray((bridge / SHARD).read_bytes())
    data[list(read_records(bridge / SHARD))[5].offset + 3000] ^= 1
    (bridge / SHARD).write_bytes(data)
    from polyspace.data import rlds

    rlds._example.cache_clear()
    with pytest.raises(UserError, match=f"{SHARD}: the record at byte .* fails its checksum"):
        record.frames("image_0", 0, 2)


def test_features_that_make_no_state_are_named(bridge):
    file = bridge / "features.json"
    text = file.read_text()
    features = json.loads(text)
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    steps["observation"]["featuresDict"]["features"]["state"]["tensor"]["shape"]["dimensions"] = ["8"]
    file.write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"features.json: state are 8 numbers a step; a state is 7"):
        build_episodes(bridge)
    file.write_text(text)
    with pytest.raises(UserError, match="no feature stat; did you mean 'state'"):
        build_episodes(bridge, state=("stat",))
    with pytest.raises(UserError, match=r"--split test: .*known: train"):
        build_episodes(bridge, split="test")
    info = json.loads((bridge / "dataset_info.json").read_text())
    (bridge / "dataset_info.json").write_text(json.dumps(info | {"name": "kitchen"}))
    with pytest.raises(UserError, match=r"state of 'kitchen' and its rate are not known; .*state= \(of st"):
        build_episodes(bridge)
    (bridge / "dataset_info.json").write_text(json.dumps(info | {"name": "a" * 9999}))
    with pytest.raises(UserError, match=r"features.json: what makes the state of .{,100} and its rate are not known"):
        build_episodes(bridge)
    assert build_episodes(bridge, state=("state",), fps=3.0).records[0].fps == 3.0
    file.unlink()
    with pytest.raises(UserError, match=r"one features.json is expected below .*, found none"):
        build_episodes(bridge)


# -- framing and messages ----------------------------------------------------------------------------------------------


def test_checksums_are_those_of_rfc_3720():
    """B.4 of the RFC, and the check value of the Castagnoli polynomial."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E and crc32c(b"") == 0


def test_lanes_give_the_checksum_of_one_byte_after_another():
    def slow(data):
        register = 0xFFFFFFFF
        for byte in data:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
        return register ^ 0xFFFFFFFF

    data = np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes()
    for length in (1, 255, 256, 257, 512, 1025, 2000):
        assert crc32c(data[:length]) == slow(data[:length])


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(field, content):
    return bytes([field << 3 | 2]) + varint(len(content)) + content


def example(features):
    """tf.train.Example of lists of bytes, floats (packed) and ints (packed)."""
    pairs = b""
    for name, values in features.items():
        if isinstance(values[0], bytes):
            feature = message(1, b"".join(message(1, v) for v in values))
        elif isinstance(values[0], float):
            feature = message(2, message(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = message(3, message(1, b"".join(varint(v % 2**64) for v in values)))
        pairs += message(1, message(1, name.encode()) + message(2, feature))
    return message(1, pairs)


def test_messages_come_back_packed_or_not():
    found = parse_example(example({"b": [b"x", b"", b"yy"], "f": [0.5, -2.0], "i": [3, -1, 2**40]}))
    assert found["b"] == [b"x", b"", b"yy"] and found["f"].tolist() == [0.5, -2.0]
    assert found["i"].tolist() == [3, -1, 2**40] and found["i"].dtype == np.int64
    loose = message(2, b"\x0d" + struct.pack("<f", 1.5) + b"\x0d" + struct.pack("<f", 2.5))
    ints = message(3, b"\x08\x05\x08\x07")
    pairs = b"".join(
        message(1, message(1, n) + message(2, v)) for n, v in ((b"f", loose), (b"i", ints), (b"none", b""))
    )
    found = parse_example(message(1, pairs))
    assert found["f"].tolist() == [1.5, 2.5] and found["i"].tolist() == [5, 7] and found["none"] == []


def test_no_malformed_message_gives_anything_but_its_own_error():
    whole = example({"name": [b"abc"], "f": [1.0, 2.0], "i": [1, 300]})
    rng = np.random.default_rng(1)
    caught = 0
    for _ in range(2000):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        data[rng.integers(len(data))] = rng.integers(256)
        try:
            parse_example(bytes(data))
        except RecordError:
            caught += 1
    assert caught > 500


def test_records_come_back_and_the_mask_is_undone(tmp_path):
    file = tmp_path / "x.tfrecord"
    parts = [b"first", b"", bytes(700)]
    file.write_bytes(b"".join(write_record(p) for p in parts))
    assert [r.data for r in read_records(file)] == parts
    rotated = (masked_crc(b"123456789") - 0xA282EAD8) % 2**32
    assert (rotated >> 17 | rotated << 15) % 2**32 == 0xE3069283


# -- a DROID-like set, written here ------------------------------------------------------------------------------------


def png(level):
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    pixels = np.full((4, 6, 3), level, np.uint8)
    pixels[0, 0] = 255
    image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_droid_in_rlds_joins_pose_and_gripper_and_leaves_out_what_does_not_fit(tmp_path):
    def numbers(*shape):
        return {"tensor": {"shape": {"dimensions": [str(d) for d in shape]}, "dtype": "float64", "encoding": "none"}}

    def fields(**children):
        return {"featuresDict": {"features": children}}

    image = {"image": {"shape": {"dimensions": ["4", "6", "3"]}, "encodingFormat": "png"}}
    observation = fields(cartesian_position=numbers(6), gripper_position=numbers(1), wrist=image)
    steps = {"sequence": {"feature": fields(observation=observation, language_instruction={"text": {}})}}
    (tmp_path / "features.json").write_text(json.dumps(fields(steps=steps)))
    states, prefix = walk(5), "steps/observation/"

    def episode(rows, images, gripper=None):
        return example(
            {
                f"{prefix}cartesian_position": rows[:, :6].ravel().tolist(),
                f"{prefix}gripper_position": rows[: gripper or len(rows), 6].tolist(),
                f"{prefix}wrist": images,
                "steps/language_instruction": [b"", b"open it"],
            }
        )

    good = [png(10 * i) for i in range(5)]
    nan = states.copy()
    nan[2, 1] = np.nan
    episodes = [
        episode(states, good),
        episode(states, [*good, png(60)]),
        episode(states, good[:2]),
        episode(states, [*good[:4], good[4][:40]]),
        episode(nan, good),
        episode(states, good, gripper=4),
        example({f"{prefix}wrist": good}),
        b"\x0a\xff",
    ]
    shard = tmp_path / "droid_100-train.tfrecord-00000-of-00001"
    shard.write_bytes(b"".join(write_record(e) for e in episodes))
    data = build_episodes(tmp_path)
    assert [r.id[-1] for r in data.records] == ["0", "1"] and [r.fps for r in data.records] == [15.0] * 2
    assert np.allclose(data.records[0].states.numpy(), states, atol=1e-6) and data.records[0].text == "open it"
    assert data.records[1].frames("wrist", 0, 5)[:, 1, 1, 0].tolist() == [0, 10, 20, 30, 40]
    assert data.notes == [f"{shard.name}#1: camera wrist has 6 frames for 5 states; cut to the shorter"]
    reasons = {id[-1]: reason for id, reason in data.left_out.items()}
    assert reasons["2"] == "camera wrist has 2 frames for 5 states" and "no readable camera" in reasons["3"]
    assert "1 of its 5 states are not finite" in reasons["4"] and "have 5, 4 steps" in reasons["5"]
    assert "lacks steps/observation/cartesian_position" in reasons["6"] and "ends within" in reasons["7"]
