"""Copies of a clip are found whatever was done to the file; other clips of the scene are not."""

import itertools

import numpy as np
import pytest
import torch

from polyspace.data import duplicates
from polyspace.data.duplicates import compare, find_pairs, near_hashes, perceptual_hashes, sketch
from polyspace.data.render import orbit_clip
from polyspace.data.video import VideoError
from polyspace.data.video_writer import write_video


def clip(seed: int, turns: int = 1) -> np.ndarray:
    """uint8 (T,H,W,3): ground and object by seed."""
    return orbit_clip(np.random.default_rng(seed), turns, 23, 48, 64, 0.0).video


def sketched(folder, video: np.ndarray, ending: str = ".mp4") -> np.ndarray:
    write_video(folder / f"clip{ending}", video)
    return sketch(folder / f"clip{ending}")


def smaller(video: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(video).permute(0, 3, 1, 2)
    return (
        torch.nn.functional.interpolate(pixels, (32, 44), mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
    )


CHANGES = {
    "another codec": (".avi", lambda v: v),
    "another container": (".webm", lambda v: v),
    "rescaled": (".mp4", smaller),
    "brighter": (".mp4", lambda v: (v * 1.1).clip(0, 255).astype(np.uint8)),
    "mirrored": (".mp4", lambda v: v[:, :, ::-1]),
    "trimmed": (".mp4", lambda v: v[2:-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_other_clips(change, tmp_path):
    ending, apply = CHANGES[change]
    sketches = [sketched(tmp_path, clip(seed)) for seed in range(5)]
    sketches.append(sketched(tmp_path, apply(clip(3)), ending))
    pairs = find_pairs(np.stack(sketches))
    assert [(p.first, p.second) for p in pairs] == [(3, 5)]
    assert pairs[0].mirrored == (change == "mirrored") and not pairs[0].still


def test_the_same_object_on_the_same_ground_in_other_motion_is_another_clip(tmp_path):
    sketches = np.stack([sketched(tmp_path, clip(7, turns)) for turns in (1, -1, 2, 3)])
    assert find_pairs(sketches) == []


def test_two_clips_of_one_scene_in_which_nothing_moves_are_called_still(tmp_path):
    frame = clip(1)[:1]
    sketches = np.stack([sketched(tmp_path, frame.repeat(n, 0)) for n in (9, 20)])
    (pair,) = find_pairs(sketches)
    assert pair.still


def test_a_pair_stands_once_and_a_threshold_may_ask_for_less(tmp_path):
    x = sketched(tmp_path, clip(0))
    flat = np.full_like(x, 90)
    pairs = find_pairs(np.stack([x, flat, x, x]), threshold=1e-3)
    assert [(p.first, p.second, p.distance) for p in pairs] == [(0, 2, 0.0), (0, 3, 0.0), (2, 3, 0.0)]


def test_the_forms_say_what_correlating_the_warped_frames_says():
    rng = np.random.default_rng(0)
    size = (3, duplicates.FRAMES, duplicates.SIDE, duplicates.SIDE)
    x, y = (rng.integers(0, 256, size, dtype=np.uint8) for _ in "xy")

    def by_hand(a: np.ndarray, b: np.ndarray) -> float:
        frames = [v.reshape(duplicates.FRAMES, -1).astype(float) for v in (a, b)]
        first, second = (v - v.mean(1, keepdims=True) for v in frames)
        best = np.inf
        for start, end in itertools.product(duplicates._CUTS, duplicates._CUTS):
            kept, seen = [], []
            for j in range(duplicates.FRAMES):
                at = (start + (1 - start - end) * (j + 0.5) / duplicates.FRAMES) * duplicates.FRAMES - 0.5
                if -0.5 <= at <= duplicates.FRAMES - 0.5:
                    at = min(max(at, 0), duplicates.FRAMES - 1)
                    low = min(int(at), duplicates.FRAMES - 2)
                    kept.append(first[low] * (low + 1 - at) + first[low + 1] * (at - low))
                    seen.append(second[j])
            u, v = np.stack(kept), np.stack(seen)
            scene = np.corrcoef(u.mean(0), v.mean(0))[0, 1]
            moves = [(w - w.mean(0)).ravel() for w in (u, v)]
            motion = moves[0] @ moves[1] / np.sqrt((moves[0] @ moves[0]) * (moves[1] @ moves[1]))
            best = min(best, max(1 - scene, 1 - motion))
        return best

    assert np.allclose(compare(x, y)[0], [by_hand(*pair) for pair in zip(x, y, strict=True)], atol=1e-4)


@pytest.mark.parametrize("block", [1 << 20, 7])
def test_hashing_finds_each_near_pair_once_as_a_loop_does(block, monkeypatch):
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", block)
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 1 << 48, 60, dtype=np.uint64)
    queries = keys.copy()
    for i in range(60):
        for bit in rng.choice(48, rng.integers(0, 13), replace=False):
            queries[i] ^= np.uint64(1) << np.uint64(bit)
    found = [pair for i, j in near_hashes(keys, queries, 8) for pair in zip(i.tolist(), j.tolist(), strict=True)]
    wanted = [(i, j) for i in range(60) for j in range(60) if bin(int(keys[i]) ^ int(queries[j])).count("1") <= 8]
    assert sorted(found) == wanted and len(wanted) > 20


def test_brightness_and_contrast_leave_the_hashes_alone(tmp_path):
    x = sketched(tmp_path, clip(4))[None]
    dimmer = np.round(x * 0.5 + 20).astype(np.uint8)
    assert np.bitwise_count(perceptual_hashes(x) ^ perceptual_hashes(dimmer)).max() <= 4


def test_a_file_that_is_no_video_says_so(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    with pytest.raises(VideoError, match=r"x\.mp4"):
        sketch(tmp_path / "x.mp4")


def test_real_clips_are_found_in_another_codec_and_not_taken_for_one_another(tmp_path, real_data):
    from polyspace.data.video import VideoReader

    sketches = []
    for path in sorted((real_data / "hmdb51").rglob("*.avi")):
        with VideoReader(path) as video:
            frames = video.read(range(0, video.num_frames, 2)).numpy()
        sketches += [sketched(tmp_path, frames), sketched(tmp_path, frames[2:], ".webm")]
    pairs = [(p.first, p.second) for p in find_pairs(np.stack(sketches))]
    assert pairs == [(i, i + 1) for i in range(0, len(sketches), 2)]
