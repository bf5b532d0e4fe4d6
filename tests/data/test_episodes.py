"""Robot episodes: alignment, what is left out and why, strides, windows; annotation JSON and raw DROID."""

import json

import numpy as np
import pytest
import torch
from robot_files import annotation, level, video, walk

from polyspace.data.droid import rotation_from_euler
from polyspace.data.episodes import EPISODES, build_episodes, find_layout, subsample, windows, with_room_for
from polyspace.data.synthetic import SyntheticConfig, generate
from polyspace.utils.errors import UserError


def recomposition_error(record) -> float:
    """How far turning R_t by the action is from R_{t+1}."""
    rotation, turn = rotation_from_euler(record.states[:, 3:6]), rotation_from_euler(record.actions[:, 3:6])
    return (turn @ rotation[:-1] - rotation[1:]).abs().max().item()


def scipy_turns(record) -> torch.Tensor:
    """The same turns by SciPy, as rotation vectors."""
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    r = rotation.from_euler("xyz", record.states[:, 3:6].numpy())
    return torch.from_numpy((r[1:] * r[:-1].inv()).as_rotvec())


def data_root(real_data, record):
    """The folder of a real episode's videos."""
    subset = "droid_subset" if record.id.startswith("train") else "droid_new_setup"
    return real_data / "droid" / subset / "videos" / record.id


# -- real episodes -----------------------------------------------------------------------------------------------------


def test_real_droid_episodes_have_a_frame_for_each_state(real_data):
    data = build_episodes(real_data / "droid" / "droid_subset")
    new = build_episodes(real_data / "droid" / "droid_new_setup", split="validation")
    assert (data.layout, data.left_out, data.notes, new.left_out) == ("annotation", {}, [], {})
    lengths = {r.id: len(r) for r in data.records + new.records}
    assert lengths == {"train/0": 56, "train/1": 89, "train/3": 80, "train/6": 39, "val/0008": 47}
    for record in data.records + new.records:
        assert list(record.cameras) == ["0", "1", "2"] and all(
            c.count() == len(record) for c in record.cameras.values()
        )
        assert record.actions.shape == (len(record) - 1, 7) and record.states.dtype == torch.float64
        assert record.frames("2", len(record) - 2, 2).shape == (2, 192, 320, 3)
    facts = {r.id: (r.fps, r.text, r.success) for r in data.records + new.records}
    assert facts["train/1"] == (5.0, "Put the blue block in the green bowl", True)
    assert facts["train/6"] == (5.0, None, False) and facts["val/0008"][0] == 4.0


def test_the_actions_of_the_real_episode_with_a_wrap_recompose_its_rotations(real_data):
    record = next(r for r in build_episodes(real_data / "droid" / "droid_subset").records if r.id == "train/6")
    steps = (record.states[1:, 3:6] - record.states[:-1, 3:6]).abs()
    assert steps.max() > 6 and record.actions[:, 3:6].abs().max() < 0.5  # angles wrap, turns don't
    assert recomposition_error(record) < 1e-6
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    ours = torch.from_numpy(rotation.from_euler("xyz", record.actions[:, 3:6].numpy()).as_rotvec())
    assert torch.allclose(ours, scipy_turns(record), atol=1e-9)


def test_a_commanded_pose_of_real_droid_is_nearer_the_next_state_than_the_present_one(real_data):
    for record in build_episodes(real_data / "droid" / "droid_subset").records:
        commanded, states = record.recorded.values[:-1, :3], record.states[:, :3]
        now, next_ = (commanded - states[:-1]).abs().median(), (commanded - states[1:]).abs().median()
        assert next_ < now and "commanded pose" in record.recorded.meaning


def test_states_are_every_third_step_of_the_raw_record(real_data):
    folder = real_data / "droid" / "droid_subset"
    for record in build_episodes(folder, camera="0").records:
        raw = json.loads((folder / "annotation" / f"{record.id}.json").read_text())
        assert record.states[:, :6].tolist() == raw["observation.state.cartesian_position"][::3]
        assert record.states[:, 6].tolist() == raw["observation.state.gripper_position"][::3]
        assert list(record.cameras) == ["0"]


# -- alignment ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [7, 5])
def test_one_frame_more_or_fewer_cuts_both_to_the_shorter_and_is_noted(tmp_path, frames):
    states = walk(6)
    annotation(tmp_path, "a", states, (6, frames))
    data = build_episodes(tmp_path)
    record, length = data.records[0], min(6, frames)
    assert len(record) == length and record.states.numpy().tolist() == states[:length].tolist()
    assert {name: c.count() for name, c in record.cameras.items()} == {"0": length, "1": length}
    assert data.notes == [f"train/a: camera 1 has {frames} frames for 6 states; cut to the shorter"]
    assert level(record.frames("1", 0, length)) == list(range(length))
    with pytest.raises(IndexError, match=f"beyond the last of {length} frames"):
        record.frames("0", 1, length)


@pytest.mark.parametrize("frames", [4, 8])
def test_any_other_mismatch_is_left_out_with_its_numbers(tmp_path, frames):
    annotation(tmp_path, "good", walk(6))
    annotation(tmp_path, "odd", walk(6), (6, frames))
    data = build_episodes(tmp_path)
    assert [r.id for r in data.records] == ["train/good"]
    assert data.left_out == {"train/odd": f"camera 1 has {frames} frames for 6 states"}


def test_states_that_are_none_are_left_out_with_a_reason(tmp_path):
    annotation(tmp_path, "good", walk(6))
    nan = walk(6)
    nan[4, 2], nan[5, 0] = np.nan, np.inf
    annotation(tmp_path, "nan", nan)
    annotation(tmp_path, "short", walk(1), (1,))
    annotation(tmp_path, "six", walk(6)[:, :6])
    annotation(tmp_path, "ragged", [[0.0] * 7, [0.0] * 6])
    annotation(tmp_path, "empty", [])
    (tmp_path / "annotation" / "train" / "torn.json").write_text('{"states": [[0.1,')
    left = build_episodes(tmp_path).left_out
    assert left["train/nan"] == "2 of its 6 states are not finite (the first is state 4)"
    assert left["train/short"] == "it has 1 states; at least 2 are needed for an action"
    assert "shape (6, 6); (T, 7) is needed" in left["train/six"] and "no table of numbers" in left["train/ragged"]
    assert "(0, " in left["train/empty"] and "not valid JSON" in left["train/torn"] and len(left) == 6


def test_a_camera_that_cannot_be_read_is_noted_and_an_episode_without_any_is_left_out(tmp_path):
    annotation(tmp_path, "one", walk(6), (6, 0))
    annotation(tmp_path, "none", walk(6), (0, 0))
    (tmp_path / "videos" / "train" / "none").mkdir(parents=True)
    (tmp_path / "videos" / "train" / "none" / "0.mp4").write_bytes(b"no video")
    data = build_episodes(tmp_path)
    assert list(data.records[0].cameras) == ["0"] and "camera 1 is not readable and not used" in data.notes[0]
    assert "no readable camera" in data.left_out["train/none"] and "no such file" in data.left_out["train/none"]


def test_no_path_of_an_annotation_leaves_the_root(tmp_path):
    for bad in ("../secret.mp4", "/etc/passwd", "videos/../../x.mp4"):
        annotation(tmp_path, "a", walk(6), videos=[{"video_path": bad}])
        with pytest.raises(UserError, match="outside --root"):
            build_episodes(tmp_path)


# -- strides and windows -----------------------------------------------------------------------------------------------


def test_strided_actions_are_the_composition_of_the_single_ones(tmp_path):
    annotation(tmp_path, "a", walk(12), (12,))
    record = build_episodes(tmp_path).records[0]
    third = subsample(record, stride=3)
    assert len(third) == 4 and third.fps == pytest.approx(5 / 3) and third.recorded is None
    assert recomposition_error(record) < 1e-6 and recomposition_error(third) < 1e-6
    single = rotation_from_euler(record.actions[:, 3:6])
    for k in range(3):
        a, b, c = range(3 * k, 3 * k + 3)
        turn = rotation_from_euler(third.actions[k, 3:6])
        assert torch.allclose(turn, single[c] @ single[b] @ single[a], atol=1e-9)
        for column in (0, 1, 2, 6):
            total = sum(record.actions[t, column].item() for t in (a, b, c))
            assert third.actions[k, column].item() == pytest.approx(total)
        euler_sum = record.actions[a : c + 1, 3:6].sum(0)
        assert not torch.allclose(euler_sum, third.actions[k, 3:6], atol=1e-3)  # sums of angles are another thing
    assert level(third.frames("0", 0, 4)) == [0, 3, 6, 9]
    assert level(subsample(third, stride=2).frames("0", 0, 2)) == [0, 6]


def test_a_rate_must_divide_the_recorded_one(tmp_path):
    annotation(tmp_path, "a", walk(6))
    record = build_episodes(tmp_path).records[0]
    assert subsample(record, fps=5.02) is record and len(subsample(record, fps=2.5)) == 3
    for rate in (4.0, 10.0, 0.0):
        with pytest.raises(UserError, match="does not divide the 5 of episode train/a"):
            subsample(record, fps=rate)
    with pytest.raises(UserError, match="a stride of 6 leaves 1"):
        subsample(record, stride=6)
    with pytest.raises(UserError, match="either fps or stride"):
        subsample(record)


def test_windows_lie_inside_and_short_videos_are_told_of(tmp_path):
    annotation(tmp_path, "a", walk(9), (9,))
    annotation(tmp_path, "b", walk(4), (4,))
    data = build_episodes(tmp_path)
    long, short = data.records
    assert windows(long, 4) == [0, 1, 2, 3, 4, 5] and windows(long, 4, 3) == [0, 3] and windows(long, 9) == [0]
    with pytest.raises(UserError, match="shorter than the horizon: episode train/b has 4 frames, a window needs 5"):
        windows(short, 5)
    kept = with_room_for(data, 5)
    assert [r.id for r in kept.records] == ["train/a"] and "shorter than the horizon" in kept.left_out["train/b"]
    with pytest.raises(UserError, match="all 2 videos are shorter than the horizon of 10 frames"):
        with_room_for(data, 10)


# -- raw DROID ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    pytest.importorskip("h5py")
    root = tmp_path_factory.mktemp("raw")
    generate(SyntheticConfig(layout="droid", out=root, clips=2, height=32, width=32, workers=1))
    return root


def test_generated_raw_droid_comes_back_with_the_actions_it_stored(raw):
    import h5py

    data = build_episodes(raw)
    assert data.layout == "droid" and len(data.records) == 2 and not data.left_out
    for record in data.records:
        assert list(record.cameras) == ["left", "right", "wrist"] and record.fps == 15.0 and record.success
        assert record.text == "move the gripper over the table" and record.group == "SYNTH/2022-01-01"
        with h5py.File(raw / record.id / "trajectory.h5") as file:
            stored = torch.from_numpy(file["action/delta"][:])
        assert torch.equal(record.actions, stored) and recomposition_error(record) < 1e-6
        assert torch.equal(record.recorded.values[:-1], record.states[1:])  # the generator commands the next pose
        assert record.frames("wrist", 46, 2).shape == (2, 32, 32, 3)
    assert len(build_episodes(raw, "droid", camera="wrist").records[0].cameras) == 1


def test_raw_episodes_that_are_damaged_are_left_out(raw, tmp_path):
    import shutil

    import h5py

    root = tmp_path / "raw"
    shutil.copytree(raw, root)
    first, second = sorted(p.parent for p in root.rglob("metadata_*.json"))
    (first / "trajectory.h5").write_bytes(b"no hdf5")
    with h5py.File(second / "trajectory.h5", "a") as file:
        del file["observation/robot_state/gripper_position"]
    with pytest.raises(UserError, match=r"none of its 2 episodes can be used; .*trajectory.h5 can't be read"):
        build_episodes(root)


def test_a_root_may_be_a_single_episode(raw):
    folder = sorted(p.parent for p in raw.rglob("metadata_*.json"))[0]
    (record,) = build_episodes(folder).records
    assert record.id == "." and record.group == "SYNTH/2022-01-01" and len(record.cameras) == 3


def test_raw_droid_has_no_other_split_than_train(raw):
    with pytest.raises(UserError, match="raw DROID has no splits"):
        build_episodes(raw, split="test")


# -- the registry ------------------------------------------------------------------------------------------------------


def test_layouts_are_told_by_their_own_files(tmp_path):
    for name, path in {
        "lerobot": "meta/info.json",
        "annotation": "annotation/train/0.json",
        "droid": "lab/day/time/metadata_x.json",
        "rlds": "1.0.0/x-train.tfrecord-00000-of-00001",
    }.items():
        file = tmp_path / name / path
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        assert find_layout(tmp_path / name) == name and name in EPISODES
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"looked for meta/info.json .*annotation/ .*metadata_\*.json .*tfrecord"):
        build_episodes(tmp_path / "empty")


def test_faults_name_the_culprit(tmp_path):
    annotation(tmp_path, "a", walk(6))
    with pytest.raises(UserError, match="--layout lerobt is unknown; did you mean 'lerobot'"):
        build_episodes(tmp_path, "lerobt")
    with pytest.raises(UserError, match=r"--camera wrist is unknown to .*; known: 0"):
        build_episodes(tmp_path, camera="wrist")
    with pytest.raises(UserError, match=r"--split trian: .*did you mean 'train'"):
        build_episodes(tmp_path, split="trian")
    with pytest.raises(UserError, match="fps has no meaning for --layout annotation"):
        build_episodes(tmp_path, fps=5.0)
    with pytest.raises(UserError, match="is not a folder"):
        build_episodes(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no camera 'wrist'; known: 0"):
        build_episodes(tmp_path).records[0].frames("wrist", 0, 1)


def test_cameras_of_different_rates_are_left_out(tmp_path):
    annotation(tmp_path, "a", walk(6), (6, 6))
    video(tmp_path / "videos" / "train" / "a" / "1.mp4", 6, fps=10.0)
    with pytest.raises(UserError, match="its cameras differ in rate: 5, 10 frames a second"):
        build_episodes(tmp_path)
