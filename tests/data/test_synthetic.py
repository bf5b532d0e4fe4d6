"""Generated clips: deterministic, in layout, with a class that only the order of frames tells."""

import hashlib
import json

import numpy as np
import pytest
import torch

from polyspace.data import build_dataset, render
from polyspace.data.droid import actions_from_states, euler_from_rotation, rotation_from_euler
from polyspace.data.synthetic import SyntheticConfig, generate, load_mask
from polyspace.data.video import probe, read_frames
from polyspace.utils.errors import UserError


def digest(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("layout", ["hmdb51", "diving48", "ssv2", "droid"])
def test_same_seed_same_bytes_whatever_the_workers(tmp_path, layout):
    if layout == "droid":
        pytest.importorskip("h5py")
    for name, seed, workers in (("a", 3, 1), ("b", 3, 2), ("c", 4, 1)):
        clips = 1 if layout == "droid" else 4
        config = {"layout": layout, "clips": clips, "seed": seed, "workers": workers, "height": 16, "width": 16}
        generate(SyntheticConfig(out=tmp_path / name, **config, **({} if layout == "droid" else {"classes": 2})))
    a, b, c = (digest(tmp_path / n) for n in "abc")
    assert a == b and a != c


def test_every_class_visits_the_same_places_once():
    frames = render.prime_at_least(17)
    for label in range(16):
        turns = render.turns_of_class(label)
        assert sorted((turns * t) % frames for t in range(frames)) == list(range(frames))


def test_the_class_is_in_the_order_of_frames_and_not_in_the_frames():
    """A nearest-direction read-out of the mask's path is right in order and at chance when frames are shuffled."""
    right = {"order": 0, "shuffled": 0}
    rng = np.random.default_rng(0)
    for i in range(60):
        label = i % 2
        clip = render.orbit_clip(np.random.default_rng([1, i]), render.turns_of_class(label), 17, 24, 24, 0.0)
        for name, order in (("order", np.arange(17)), ("shuffled", rng.permutation(17))):
            mask = clip.mask[order]
            rows, cols = np.meshgrid(np.arange(24), np.arange(24), indexing="ij")
            weight = mask.sum((1, 2)).clip(1)
            y, x = (mask * rows).sum((1, 2)) / weight, (mask * cols).sum((1, 2)) / weight
            y, x = y - y.mean(), x - x.mean()
            turn = (x[:-1] * y[1:] - y[:-1] * x[1:]).sum()
            right[name] += (turn > 0) == (render.turns_of_class(label) > 0)
    assert right["order"] >= 58 and 18 <= right["shuffled"] <= 42


def test_masks_fit_the_video_and_lie_on_the_object(tmp_path):
    generate(SyntheticConfig(layout="ssv2", out=tmp_path, clips=4, classes=2, workers=1))
    record = build_dataset("ssv2", tmp_path, "train").records[0]
    mask, info = load_mask(tmp_path, record.id), probe(record.path)
    assert mask.shape == (info.num_frames, info.height, info.width) and 0.01 < mask.mean() < 0.3
    truth = {c["id"]: c for c in json.loads((tmp_path / "synthetic" / "truth.json").read_text())["clips"]}
    scene = truth[record.id]["scene"]
    assert scene["colour"] in record.text and scene["shape"] in record.text
    video = read_frames(record.path, range(info.num_frames)).numpy() / 255
    inner = mask & np.roll(mask, 1, 1) & np.roll(mask, -1, 1) & np.roll(mask, 1, 2) & np.roll(mask, -1, 2)
    assert np.abs(video[inner].mean(0) - render.COLOURS[scene["colour"]]).max() < 0.2


def test_droid_episodes_have_states_actions_and_three_cameras(tmp_path):
    h5py = pytest.importorskip("h5py")
    generate(SyntheticConfig(layout="droid", out=tmp_path, clips=1))
    (meta_file,) = tmp_path.rglob("metadata_*.json")
    meta = json.loads(meta_file.read_text())
    with h5py.File(tmp_path / meta["hdf5_path"]) as file:
        robot = file["observation/robot_state"]
        states = np.concatenate([robot["cartesian_position"][:], robot["gripper_position"][:][:, None]], 1)
        actions = file["action/delta"][:]
    assert states.shape == (meta["trajectory_length"], 7) and actions.shape == (len(states) - 1, 7)
    for camera in ("ext1", "ext2", "wrist"):
        assert probe(tmp_path / meta[f"{camera}_mp4_path"]).num_frames == len(states)


def test_actions_follow_rotations_over_the_wrap_and_match_scipy(real_data):
    from scipy.spatial.transform import Rotation

    file = real_data / "droid" / "droid_subset" / "annotation" / "train" / "6.json"
    states = torch.tensor(json.loads(file.read_text())["states"], dtype=torch.float64)
    actions = actions_from_states(states)
    turns = Rotation.from_euler("xyz", states[:, 3:6].numpy())
    expected = (turns[1:] * turns[:-1].inv()).as_euler("xyz")
    np.testing.assert_allclose(actions[:, 3:6], expected, atol=1e-9)
    np.testing.assert_allclose(actions[:, :3], states.diff(dim=0)[:, :3])
    assert states.diff(dim=0)[:, 3:6].abs().max() > 6 and actions[:, 3:6].abs().max() < 0.5  # one angle wraps


def test_euler_angles_go_there_and_back():
    angles = (torch.rand(200, 3, dtype=torch.float64) - 0.5) * torch.tensor([6.2, 3.1, 6.2], dtype=torch.float64)
    torch.testing.assert_close(euler_from_rotation(rotation_from_euler(angles)), angles)
    locked = torch.tensor([[0.3, torch.pi / 2, 0.2]], dtype=torch.float64)
    back = euler_from_rotation(rotation_from_euler(locked))
    torch.testing.assert_close(rotation_from_euler(back), rotation_from_euler(locked))


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(UserError, match="--frames 18 must be a prime"):
        generate(SyntheticConfig(layout="ssv2", out=tmp_path / "a", clips=4, classes=3, frames=18))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="did not write"):
        generate(SyntheticConfig(layout="ssv2", out=tmp_path / "b", clips=4, classes=3))
