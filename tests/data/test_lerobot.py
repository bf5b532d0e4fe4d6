"""LeRobot: files written here as v2.1 and v3 write them (one episode a file; several in one)."""

import json

import numpy as np
import pytest
import torch
from robot_files import level, video, walk

from polyspace.data.episodes import build_episodes, subsample
from polyspace.utils.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

KEY = "observation.images.front"
AXES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
LENGTHS = (6, 4, 9)
TEXTS = ("lift the cup", "close the door", "lift the cup")


def info(version, data, film, names=AXES, **more):
    features = {
        "observation.state": {"dtype": "float32", "shape": [len(names)], "names": {"motors": names}},
        "action": {"dtype": "float32", "shape": [7], "names": AXES},
        KEY: {"dtype": "video", "shape": [16, 32, 3], "names": ["height", "width", "channel"]},
        "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    }
    splits = {"train": "0:2", "val": "2:3"}
    content = {"codebase_version": version, "fps": 5, "chunks_size": 1000, "data_path": data, "video_path": film}
    return content | {"features": features, "splits": splits, "total_episodes": 3} | more


def columns(index, states, start):
    count = len(states)
    return {
        "observation.state": states.astype(np.float32).tolist(),
        "action": (states + 1).astype(np.float32).tolist(),
        "timestamp": (np.arange(count) / 5).tolist(),
        "frame_index": list(range(count)),
        "episode_index": [index] * count,
        "index": list(range(start, start + count)),
        "task_index": [TEXTS.index(TEXTS[index])] * count,
        "next.success": [False] * (count - 1) + [index != 1],
    }


def parquet(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def states_of(index, width=7):
    return np.concatenate([walk(LENGTHS[index], seed=index), np.zeros((LENGTHS[index], width - 7))], 1)


def v21(root, **more):
    """One file an episode; episodes and tasks as JSON lines."""
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    film = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    start = 0
    for i, count in enumerate(LENGTHS):
        parquet(root / f"data/chunk-000/episode_{i:06d}.parquet", columns(i, states_of(i), start))
        video(root / f"videos/chunk-000/{KEY}/episode_{i:06d}.mp4", count)
        start += count
    rows = [{"episode_index": i, "tasks": [TEXTS[i]], "length": n} for i, n in enumerate(LENGTHS)]
    write_lines(root / "meta" / "episodes.jsonl", rows)
    write_lines(root / "meta" / "tasks.jsonl", [{"task_index": i, "task": TEXTS[i]} for i in range(2)])
    (root / "meta" / "info.json").write_text(json.dumps(info("v2.1", data, film, **more)))


def v3(root, **more):
    """All episodes in one table and one video; meta/episodes tells their ranges."""
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    film = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    starts = np.concatenate([[0], np.cumsum(LENGTHS)]).tolist()
    parts = [columns(i, states_of(i), starts[i]) for i in range(3)]
    parquet(root / "data/chunk-000/file-000.parquet", {k: [v for p in parts for v in p[k]] for k in parts[0]})
    video(root / f"videos/{KEY}/chunk-000/file-000.mp4", sum(LENGTHS))
    episodes = {
        "episode_index": [0, 1, 2],
        "tasks": [[t] for t in TEXTS],
        "length": list(LENGTHS),
        "data/chunk_index": [0] * 3,
        "data/file_index": [0] * 3,
        "dataset_from_index": starts[:3],
        "dataset_to_index": starts[1:],
        f"videos/{KEY}/chunk_index": [0] * 3,
        f"videos/{KEY}/file_index": [0] * 3,
        f"videos/{KEY}/from_timestamp": [s / 5 for s in starts[:3]],
        f"videos/{KEY}/to_timestamp": [s / 5 for s in starts[1:]],
        "stats/action/mean": [[0.0] * 7] * 3,
    }
    parquet(root / "meta/episodes/chunk-000/file-000.parquet", episodes)
    parquet(root / "meta/tasks.parquet", {"task_index": [0, 1], "__index_level_0__": list(TEXTS[:2])})
    (root / "meta" / "info.json").write_text(json.dumps(info("v3.0", data, film, **more)))


def edit(root, **more):
    """Change info.json."""
    file = root / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


@pytest.mark.parametrize("write", [v21, v3])
def test_both_forms_give_the_same_episodes(tmp_path, write):
    write(tmp_path)
    data = build_episodes(tmp_path)
    assert data.layout == "lerobot" and not data.left_out and not data.notes
    assert [r.id for r in data.records] == ["episode_000000", "episode_000001", "episode_000002"]
    first = 0
    for i, record in enumerate(data.records):
        assert len(record) == LENGTHS[i] and record.fps == 5.0 and record.text == TEXTS[i]
        assert record.success is (i != 1)
        assert record.states.numpy().tolist() == states_of(i).astype(np.float32).astype(float).tolist()
        assert torch.allclose(record.recorded.values, record.states + 1, atol=1e-5)
        assert "x, y, z, roll" in record.recorded.meaning and "does not say whether" in record.recorded.meaning
        numbers = [(first + k if write is v3 else k) % 25 for k in range(LENGTHS[i])]
        assert level(record.frames(KEY, 0, LENGTHS[i])) == numbers
        assert level(subsample(record, stride=3).frames(KEY, 0, 2)) == numbers[:4:3]
        with pytest.raises(IndexError, match="beyond the last"):
            record.cameras[KEY].read([LENGTHS[i]])  # the next episode's frames stay out of reach
        first += LENGTHS[i]


@pytest.mark.parametrize("write", [v21, v3])
def test_splits_are_those_of_info_json(tmp_path, write):
    write(tmp_path)
    assert [r.id[-1] for r in build_episodes(tmp_path, split="train").records] == ["0", "1"]
    assert [r.id[-1] for r in build_episodes(tmp_path, split="validation").records] == ["2"]
    with pytest.raises(UserError, match=r"--split test: meta/info.json has no such split; known: train, val"):
        build_episodes(tmp_path, split="test")


def test_the_templates_are_followed_and_not_the_version(tmp_path):
    v3(tmp_path, codebase_version="v2.1")
    assert len(build_episodes(tmp_path).records) == 3
    (tmp_path / "data" / "chunk-000" / "file-000.parquet").rename(tmp_path / "rows_0.parquet")
    edit(tmp_path, data_path="rows_{file_index:d}.parquet")
    assert len(build_episodes(tmp_path).records) == 3


def test_states_are_found_by_the_names_of_their_columns(tmp_path):
    v21(tmp_path)
    names = ["gripper", "pad", *AXES[:6]]
    for i in range(3):
        states = states_of(i)
        moved = np.concatenate([states[:, 6:], np.full((len(states), 1), 9.0), states[:, :6]], 1)
        rows = columns(i, states, 0) | {"observation.state": moved.astype(np.float32).tolist()}
        parquet(tmp_path / f"data/chunk-000/episode_{i:06d}.parquet", rows)
    features = json.loads((tmp_path / "meta" / "info.json").read_text())["features"]
    features["observation.state"] |= {"shape": [8], "names": [n.upper() for n in names]}
    edit(tmp_path, features=features)
    for i, record in enumerate(build_episodes(tmp_path).records):
        assert np.allclose(record.states.numpy(), states_of(i), atol=1e-6)


def test_joint_angles_are_not_taken_for_a_pose(tmp_path):
    v21(tmp_path)
    features = json.loads((tmp_path / "meta" / "info.json").read_text())["features"]
    features["observation.state"]["names"] = [f"joint_{k}" for k in range(7)]
    edit(tmp_path, features=features)
    with pytest.raises(UserError, match=r"does not say which columns are x, y.*joint_0.*\(of observation.state\)"):
        build_episodes(tmp_path)
    assert len(build_episodes(tmp_path, state=("observation.state",)).records) == 3
    with pytest.raises(UserError, match=r"no feature observation.stat; did you mean 'observation.state'"):
        build_episodes(tmp_path, state=("observation.stat",))


def test_pose_and_gripper_columns_are_joined(tmp_path):
    v21(tmp_path)
    features = json.loads((tmp_path / "meta" / "info.json").read_text())["features"]
    for i in range(3):
        states, rows = states_of(i), columns(i, states_of(i), 0)
        rows["observation.state.cartesian_position"] = states[:, :6].tolist()
        rows["observation.state.gripper_position"] = states[:, 6].tolist()
        del rows["observation.state"]
        parquet(tmp_path / f"data/chunk-000/episode_{i:06d}.parquet", rows)
    number = {"dtype": "float64", "names": None}
    features |= {f"observation.state.{k}_position": number for k in ("cartesian", "gripper")}
    edit(tmp_path, features=features)
    for i, record in enumerate(build_episodes(tmp_path).records):
        assert record.states.numpy().tolist() == states_of(i).tolist()


def test_episodes_that_do_not_fit_are_left_out_with_their_reason(tmp_path):
    v21(tmp_path)
    films = tmp_path / "videos" / "chunk-000" / KEY
    video(films / "episode_000000.mp4", 9)
    (tmp_path / "data" / "chunk-000" / "episode_000001.parquet").write_bytes(b"PAR1 torn")
    data = build_episodes(tmp_path)
    assert [r.id[-1] for r in data.records] == ["2"]
    assert data.left_out["episode_000000"] == f"camera {KEY} has 9 frames for 6 states"
    assert "episode_000001.parquet is damaged" in data.left_out["episode_000001"]
    video(films / "episode_000000.mp4", 6, fps=10.0)
    (tmp_path / "data" / "chunk-000" / "episode_000001.parquet").unlink()
    left = build_episodes(tmp_path).left_out
    assert "plays at 10 frames a second, its data set says 5" in left["episode_000000"]
    assert "episode_000001.parquet does not exist" in left["episode_000001"]


def test_rows_that_contradict_the_metadata_are_left_out(tmp_path):
    v21(tmp_path)
    rows = columns(0, states_of(0), 0)
    gap = rows | {"frame_index": [0, 1, 2, 4, 5, 6]}
    parquet(tmp_path / "data/chunk-000/episode_000000.parquet", gap)
    parquet(tmp_path / "data/chunk-000/episode_000001.parquet", columns(1, states_of(1)[:3], 0))
    nan = columns(2, states_of(2) * [1, 1, np.nan, 1, 1, 1, 1], 0)
    parquet(tmp_path / "data/chunk-000/episode_000002.parquet", nan)
    with pytest.raises(UserError, match="none of its 3 episodes"):
        build_episodes(tmp_path)
    parquet(tmp_path / "data/chunk-000/episode_000000.parquet", {k: v[::-1] for k, v in rows.items()})
    data = build_episodes(tmp_path)
    assert np.allclose(data.records[0].states.numpy(), states_of(0), atol=1e-6)  # rows in another order are sorted
    assert data.left_out["episode_000001"] == "its table has 3 rows, meta/episodes says 4"
    assert data.left_out["episode_000002"] == "9 of its 9 states are not finite (the first is state 0)"
    parquet(tmp_path / "data/chunk-000/episode_000000.parquet", gap)
    parquet(tmp_path / "data/chunk-000/episode_000002.parquet", columns(2, states_of(2), 0))
    assert "does not run from 0 without a gap" in build_episodes(tmp_path).left_out["episode_000000"]


def test_a_range_that_is_no_whole_frames_is_left_out(tmp_path):
    v3(tmp_path)
    file = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file).to_pydict()
    table[f"videos/{KEY}/from_timestamp"][1] = 1.27
    parquet(file, table)
    data = build_episodes(tmp_path)
    assert list(data.left_out) == ["episode_000001"] and "is frames 6.35 to 10.00" in data.left_out["episode_000001"]


def test_a_template_cannot_leave_the_root_or_ask_for_more_than_it_may(tmp_path):
    v21(tmp_path)
    whole = (tmp_path / "meta" / "info.json").read_text()
    for bad in ("../{episode_index}.mp4", "/tmp/{video_key}.mp4"):
        edit(tmp_path, video_path=bad)
        with pytest.raises(UserError, match="outside --root"):
            build_episodes(tmp_path)
    for bad in ("{episode_index.__class__}", "{episode_index!r}", "{home}", "{episode_index:0999999d}"):
        edit(tmp_path, data_path=bad)
        with pytest.raises(UserError, match=r"data_path .* has a placeholder that is not known"):
            build_episodes(tmp_path)
    edit(tmp_path, data_path="data/file-{file_index:03d}.parquet")
    with pytest.raises(UserError, match="data_path needs file_index, which meta/episodes lacks for 0"):
        build_episodes(tmp_path)
    (tmp_path / "meta" / "info.json").write_text(whole)
    assert len(build_episodes(tmp_path).records) == 3


def test_what_meta_lacks_is_named(tmp_path):
    v21(tmp_path)
    lines = tmp_path / "meta" / "episodes.jsonl"
    lines.write_text('{"episode_index": 0')
    with pytest.raises(UserError, match=r"episodes.jsonl line 1 is not valid JSON"):
        build_episodes(tmp_path)
    lines.unlink()
    with pytest.raises(UserError, match=r"none of .*episodes.jsonl, .*episodes.parquet and .*is there"):
        build_episodes(tmp_path)
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(UserError, match=r"info.json is not of the form expected: fps: field required"):
        build_episodes(tmp_path)
