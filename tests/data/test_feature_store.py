"""The store: resumable to the byte, checked on load, decoded once, failures listed and never replaced."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY, run, run_fails, run_ok

from polyspace.data.extract import Views, decode_clip
from polyspace.data.feature_store import FeatureStore
from polyspace.data.sampling import Sampling
from polyspace.data.synthetic import SyntheticConfig, generate
from polyspace.data.video import VideoReader, read_frames
from polyspace.utils.checkpoint_io import read_json
from polyspace.utils.errors import UserError
from polyspace.utils.plan import Plan

SPLIT = "testTrainMulti_7030_splits"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("hmdb51")
    generate(SyntheticConfig(layout="hmdb51", out=root, clips=24, classes=2, height=32, width=40))
    return root


def line(root, out, more="", split="train"):
    return (
        f"polyspace featurize --dataset hmdb51 --root {root} --split {split} --out {out} --student vjepa2 "
        f"--teachers timesformer --batch 2 --workers 2 --frames 4 {more}"
    )


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.endswith(".run.json")}


@pytest.fixture(scope="module")
def store(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("store")
    run_ok(line(clips, out), out)
    return out


def test_a_store_holds_what_its_manifest_says(store, clips):
    opened = FeatureStore(store / "features_hmdb51_train.json")
    assert len(opened) == 18 and opened.student == "vjepa2" and opened.stand_ins == ["vjepa2", "timesformer"]
    assert opened.features("vjepa2").shape == (18, 1024) and opened.features("timesformer").shape == (18, 768)
    assert opened.labels().unique().tolist() == [0, 1] and opened.manifest["failed"] == []
    text = (store / "features_hmdb51_train.json").read_text()
    assert str(clips) not in text and "date" not in json.loads(text)
    assert [p.name for p in store.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(UserError, match="has no space 'vivt'"):
        opened.features("vivt")


@pytest.mark.parametrize("more", ["--workers 0", "--workers 1"])
def test_the_bytes_do_not_depend_on_the_workers(store, clips, tmp_path, more):
    run_ok(line(clips, tmp_path, more), tmp_path, OMP_NUM_THREADS="1")
    assert files(tmp_path) == files(store)


def test_bf16_features_are_near_those_of_fp32_and_their_store_says_so(checkpoints, clips, tmp_path):
    def made(precision: str) -> FeatureStore:
        more = f"--precision {precision} --checkpoint vjepa2={checkpoints['vjepa2']}"
        run_ok(line(clips, tmp_path / precision, more), tmp_path)
        return FeatureStore(tmp_path / precision / "features_hmdb51_train.json")

    exact, half = made("fp32"), made("bf16")
    x, y = exact.features("vjepa2"), half.features("vjepa2")
    assert y.dtype == torch.float32 and not torch.equal(x, y)
    assert torch.cosine_similarity(x, y).min() > 0.999
    assert half.fingerprint != exact.fingerprint and half.manifest["settings"]["precision"] == "bf16"
    last = run_fails(
        line(clips, tmp_path / "bf16", f"--checkpoint vjepa2={checkpoints['vjepa2']}"), tmp_path, "--overwrite"
    )
    assert "made with another precision" in last


def test_killed_at_random_moments_it_ends_byte_equal(store, clips, tmp_path):
    command = [sys.executable, "-m", "polyspace.cli", *line(clips, tmp_path / "o").split()[1:]]
    rng = random.Random(0)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        work = tmp_path / "o"
        begun = time.monotonic()
        # wait for its work folder (start-up takes seconds), then strike within the half second that the work takes
        while process.poll() is None and not list(work.glob(".*partial")) and time.monotonic() - begun < 60:
            time.sleep(0.01)
        if process.poll() is None:
            time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            break
        # every other time only the main process dies, and its workers are left behind
        (os.killpg if kills % 2 else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        if kills == 5:
            break
    run_ok(line(clips, tmp_path / "o"), tmp_path)
    assert kills >= 1 and files(tmp_path / "o") == files(store)
    assert [p.name for p in (tmp_path / "o").iterdir() if p.name.startswith(".")] == []


def test_a_finished_store_is_not_made_again_and_other_settings_do_not_overwrite_it(store, clips, tmp_path):
    shutil.copytree(store, tmp_path / "o")
    before = files(tmp_path / "o")
    assert "complete already" in run_ok(line(clips, tmp_path / "o"), tmp_path).stdout
    run_fails(line(clips, tmp_path / "o", "--sampling stride:1"), tmp_path, "sampling", "--overwrite")
    assert files(tmp_path / "o") == before
    run_ok(line(clips, tmp_path / "o", "--sampling stride:1 --overwrite"), tmp_path)
    after = files(tmp_path / "o")
    assert len(after) == 2 and after.keys() != before.keys()


def test_flipped_bits_cut_files_and_other_versions_are_refused(store, clips, tmp_path):
    shutil.copytree(store, tmp_path / "o")
    manifest = tmp_path / "o" / "features_hmdb51_train.json"
    (shard,) = (tmp_path / "o").glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match="sha256 is not the manifest's"):
        FeatureStore(manifest).features("vjepa2")
    shard.unlink()
    with pytest.raises(UserError, match=r"safetensors is missing"):
        FeatureStore(manifest).features("vjepa2")
    content = read_json(manifest)
    assert "missing" in run_ok(line(clips, tmp_path / "o"), tmp_path).stderr  # said, and made again
    assert FeatureStore(manifest).features("vjepa2").shape == (18, 1024)
    manifest.write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        FeatureStore(manifest)
    manifest.write_text(json.dumps({k: v for k, v in content.items() if k != "clips"}))
    with pytest.raises(UserError, match="lacks clips"):
        FeatureStore(manifest)
    manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(UserError, match="not valid JSON"):
        FeatureStore(manifest)


def test_unreadable_and_missing_clips_are_listed_and_never_replaced(clips, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(clips, root)
    videos = sorted(root.glob("*/*.avi"))
    listed = []
    for name in ("turn_ccw_1x", "turn_cw_1x"):
        rows = (root / SPLIT / f"{name}_test_split1.txt").read_text().splitlines()
        listed += [f"{name}/{row.split()[0]}" for row in rows if row.split()[1] == "1"]
    broken, gone = listed[3], listed[9]
    assert root / broken in videos
    (root / broken).write_bytes(b"not a video")
    (root / gone).unlink()
    done = run(line(root, tmp_path / "o"), tmp_path)
    assert done.returncode == 1 and "more than --max_failed" in done.stderr and "Traceback" not in done.stderr
    opened = FeatureStore(tmp_path / "o" / "features_hmdb51_train.json")
    assert opened.manifest["missing"] == [gone] and [f["id"] for f in opened.manifest["failed"]] == [broken]
    assert len(opened) == 16 and not {broken, gone} & set(opened.ids)
    whole = {c: i for i, c in enumerate(opened.ids)}
    assert len(whole) == 16
    assert run(line(root, tmp_path / "o", "--max_failed 0.2"), tmp_path).returncode == 0


def test_real_odd_files_are_read_or_listed_with_their_reason(real_data, tmp_path):
    run(f"polyspace featurize --dataset videofolder --root {real_data}/odd --out o --teachers timesformer", tmp_path)
    opened = FeatureStore(tmp_path / "o" / "features_videofolder_train.json")
    failed = {f["id"]: f["reason"] for f in opened.manifest["failed"]}
    assert set(failed) == {
        "audio_only.mp3",
        "invalid_vp9_bug_1416.webm",
        "zero_frames.webm",
        "block_ends_beyond_cluster.mkv",
    }
    frames = {c["id"]: c["frames"] for c in opened.manifest["clips"]}
    assert frames["corrupted.mp4"] == 28 and frames["multi_stream_nasa_13013.mp4"] == 390 and len(frames) == 14
    notes = {c["id"]: c["note"] for c in opened.manifest["clips"] if "note" in c}
    assert list(notes) == ["corrupted.mp4"]


def test_a_damaged_clip_with_fewer_frames_than_needed_is_failed(real_data, tmp_path):
    run(
        f"polyspace featurize --dataset videofolder --root {real_data}/odd --out o --teachers timesformer --frames 32",
        tmp_path,
    )
    failed = {
        f["id"]: f["reason"]
        for f in FeatureStore(tmp_path / "o" / "features_videofolder_train.json").manifest["failed"]
    }
    assert "32 are needed" in failed["corrupted.mp4"]


def test_each_clip_is_decoded_once_for_all_backbones(real_data):
    plans = {n: Plan(t, 32, (32, 32), (0.5,) * 3, (0.5,) * 3) for n, t in (("a", 16), ("b", 8), ("c", 32))}
    for path in sorted((real_data / "hmdb51").glob("*/*.avi")):
        chosen, result, decoded = decode_clip(path, plans, Views(Sampling()), 16)
        assert decoded == result.frames
        for name, plan in plans.items():
            (window,) = chosen[name]
            (indices,) = Sampling().pick(result.frames, plan.frames, 30.0)
            assert torch.equal(window, read_frames(path, indices))


def test_views_are_averaged(clips, tmp_path):
    run_ok(line(clips, tmp_path / "a", "--views 2 --crops 3 --tokens"), tmp_path)
    opened = FeatureStore(tmp_path / "a" / "features_hmdb51_train.json")
    tensors = next(iter(opened.shards()))
    assert tensors["vjepa2.tokens"].shape == (18, 32, 1024)
    torch.testing.assert_close(tensors["vjepa2.tokens"].mean(1), tensors["vjepa2"])


def test_two_runs_in_one_folder_do_not_mix(clips, tmp_path):
    from polyspace.data.store_writer import StoreWriter

    writer = StoreWriter(tmp_path / "features_x_train.json", {"a": 1}, 2)
    writer.open()
    with pytest.raises(UserError, match="another run is writing"):
        StoreWriter(tmp_path / "features_x_train.json", {"a": 1}, 2).open()
    writer.close()


@pytest.mark.parametrize("shard", ["whole", "small"])
def test_shards_of_any_size_hold_the_same_rows(monkeypatch, tmp_path, shard):
    from polyspace.data import store_writer
    from polyspace.data.store_writer import ClipResult, StoreWriter

    if shard == "small":
        monkeypatch.setattr(store_writer, "SHARD_BYTES", 4 * 8)
    clips = [{"id": str(i), "label": i % 2, "group": str(i)} for i in range(11)]
    writer = StoreWriter(tmp_path / "features_x_train.json", {"a": 1}, 2)
    writer.open()
    for b in reversed(range(6)):
        good = [i for i in range(2 * b, min(2 * b + 2, 11)) if i not in (4, 5, 7)]
        results = [ClipResult(9) if i in good else ClipResult(0, "bad") for i in range(2 * b, min(2 * b + 2, 11))]
        writer.write_part(b, {"s": torch.tensor([[float(i)] * 2 for i in good])} if good else {}, results)
    head = {"student": "s", "spaces": {"s": {"dim": 2, "backend": "x"}}, "classes": ["a", "b"], "missing": []}
    made = writer.finish(clips, head, 8)
    assert made.ids == ["0", "1", "2", "3", "6", "8", "9", "10"]
    assert made.features("s")[:, 0].tolist() == [0, 1, 2, 3, 6, 8, 9, 10]
    assert [f["id"] for f in made.manifest["failed"]] == ["4", "5", "7"]
    assert len(made.manifest["shards"]) == (1 if shard == "whole" else 3)


@pytest.mark.dist
def test_ranks_share_the_clips_and_write_the_same_store(store, clips, tmp_path):
    words = line(clips, tmp_path / "o", "--workers 1").split()[2:]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29533"]
    done = subprocess.run(
        [*command, "-m", "polyspace.data.featurize", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "o") == files(store)


def test_the_reader_counts_its_frames(real_data):
    with VideoReader(real_data / "clips" / "mmaction2_demo.mp4") as video:
        assert video.num_frames == 280 and video.decoded == 0


def test_a_full_disk_is_a_sentence_and_the_run_can_be_continued(store, clips, tmp_path):
    """A limit on file size stands in for the full disk; a real one was tried by hand."""
    words = " ".join(line(clips, tmp_path / "o").split()[1:])
    limited = f"ulimit -f 16; exec {sys.executable} -m polyspace.cli {words}"
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot write ") and "File too large" in last
    run_ok(line(clips, tmp_path / "o"), tmp_path)
    assert files(tmp_path / "o") == files(store)


@pytest.mark.dist
def test_a_worker_that_dies_is_a_sentence_and_its_batches_are_made_again(clips, tmp_path):
    from polyspace.data.extract import BatchDataset, run_batches
    from polyspace.data.store_writer import StoreWriter

    plan = Plan(2, 16, (16, 16), (0.5,) * 3, (0.5,) * 3)
    paths = sorted(clips.glob("*/*.avi"))[:8]
    writer = StoreWriter(tmp_path / "features_x_train.json", {"a": 1}, 2)
    writer.open()

    def forward(video, deadly=True):
        if deadly and writer.part(1).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return {"": video.mean((1, 2, 3))}

    dataset = BatchDataset(paths, {"s": plan}, Views(Sampling()), 2, writer, {"s": forward})
    with pytest.raises(UserError, match="a data worker died"):
        list(run_batches(dataset, range(4), 1))
    assert [writer.done(i) for i in range(4)] == [True, True, False, False]
    dataset.forwards = {"s": lambda video: forward(video, deadly=False)}
    assert [b.index for b in run_batches(dataset, [2, 3], 1)] == [2, 3] and all(map(writer.done, range(4)))
    writer.close()
