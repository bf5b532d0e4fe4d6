"""main.py's four phases in order, small: what they leave, how they resume, and what stops them."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from polyspace.config import run_command
from polyspace.data.batch import VideoBatch
from polyspace.train.action_posttrain import load_world
from polyspace.train.language_align import load_language
from polyspace.train.run import main
from polyspace.utils.checkpoint_io import load_tensors, read_json, save_tensors
from polyspace.utils.errors import UserError

REPOSITORY = Path(__file__).parents[2]
PHASES = ("pretrain", "language", "probe", "action")
SMALL = {
    "data": {"clips": 12, "size": 24, "frames": 6},
    "encoder": {"dim": 32, "depth": 1, "cell_dim": 32},
    "pretrain": {"steps": 3, "batch": 8, "save_every": 2},
    "language": {"steps": 6, "batch": 8, "clips": 24, "held_out": 12, "dim": 16, "save_every": 2},
    "probe": {"steps": 6, "batch": 8, "clips": 24, "held_out": 12, "save_every": 2},
    "action": {"steps": 6, "batch": 4, "width": 16, "depth": 1, "horizon": 2, "save_every": 2}
    | {"episodes": {"episodes": 6, "held_out": 3, "frames": 5}},
}


def line(folder: Path, sequence: str = ",".join(PHASES), *more: str) -> list[str]:
    sets = []
    for section, values in SMALL.items():
        for key, value in values.items():
            nested = value.items() if isinstance(value, dict) else [(None, value)]
            sets += [f"{section}.{key}{'.' + k if k else ''}={v}" for k, v in nested]
    return ["--work_dir", str(folder), "--sequence", sequence, *(x for s in [*sets, *more] for x in ("--set", s))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    assert run_command(main, line(folder)) == 0
    return folder


def manifest(folder: Path) -> dict:
    return json.loads((folder / "pipeline_manifest.json").read_text())["phases"]


def test_the_manifest_tells_of_every_phase(finished):
    phases = manifest(finished)
    assert tuple(phases) == PHASES
    for name, entry in phases.items():
        assert Path(entry["checkpoint"]).is_dir() and entry["seconds"] > 0 and len(entry["config_hash"]) == 64, name
        assert entry["first"] and entry["last"] and all(Path(file).is_file() for file in entry["sha256"])
    assert phases["language"]["first"]["step"] == 0 and phases["language"]["last"]["step"] == 6
    assert {"video_to_text_r1", "text_to_video_r10", "zero_shot"} <= phases["language"]["last"].keys()
    assert 0 <= phases["probe"]["random_encoder"]["accuracy"] <= 1
    assert abs(phases["action"]["first"]["gain"]) < 1e-4  # it starts as the copied frame


def test_finished_phases_are_skipped_and_a_later_one_may_run_alone(finished, capsys):
    began = time.monotonic()
    assert run_command(main, line(finished)) == 0
    assert capsys.readouterr().out.count("finished before") == 4 and time.monotonic() - began < 60
    assert run_command(main, line(finished, "probe")) == 0


def test_a_subset_starts_from_another_runs_encoder(finished, tmp_path):
    arguments = [*line(tmp_path / "b", "probe", "probe.control=false"), "--init_from", str(finished)]
    assert run_command(main, arguments) == 0
    entry = manifest(tmp_path / "b")["probe"]
    assert entry["encoder"]["folder"] == str(finished / "pretrain") and entry["random_encoder"] is None
    assert not (tmp_path / "b" / "pretrain").exists()


def test_what_was_written_is_what_was_trained(finished):
    towers, text = load_language(finished / "language")
    step = load_tensors(finished / "language" / "step_000006" / "model.safetensors", "checkpoint")
    assert torch.equal(towers.log_temperature, step["towers.log_temperature"])
    assert torch.equal(text.words.weight, step["text.trained.words.weight"])
    world, about = load_world(finished / "action")
    assert world.encode(torch.randn(1, 24, 24, 3)).shape == (1, 9, 32)
    assert about["size"] == 24 and about["mean"] == [0.45] * 3


def test_a_world_model_does_not_take_another_encoder(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path / "moved")
    load_world(tmp_path / "moved" / "action")  # a run can be moved as a whole
    about = read_json(tmp_path / "moved" / "pretrain" / "encoder.json")
    (tmp_path / "moved" / "pretrain" / "encoder.json").write_text(json.dumps(about | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="another encoder"):
        load_world(tmp_path / "moved" / "action")


@pytest.mark.parametrize(
    ("phase", "more", "said"),
    [
        ("probe", ["probe.pooling=cam", "probe.saliency_weight=0.5"], "saliency"),
        ("probe", ["probe.pooling=saliency"], "accuracy"),
        ("probe", ["probe.pooling=attentive", "probe.lr=1e-3"], "accuracy"),
        ("probe", ["probe.loss=bce", "probe.labels=attributes"], "mean_average_precision"),
        ("probe", ["probe.loss=bce"], "binary_accuracy"),
        ("probe", ["probe.unfreeze=routing", "probe.coherence_weight=0.1"], "coherence"),
        ("language", ["language.unfreeze=all", "language.energy_weight=0"], "zero_shot"),
        ("language", ["language.cache_gib=0"], "zero_shot"),
    ],
)
def test_every_way_of_probing_and_aligning_trains(finished, tmp_path, phase, more, said):
    control = ["probe.control=false"] if phase == "probe" else []
    arguments = [*line(tmp_path, phase, *more, *control, f"{phase}.log_every=1"), "--init_from", str(finished)]
    assert run_command(main, arguments) == 0
    rows = [json.loads(row) for row in (tmp_path / phase / "metrics.jsonl").read_text().splitlines()]
    assert any(said in row for row in rows)
    learned = (tmp_path / phase / "encoder.safetensors").is_file()
    assert learned == any("unfreeze" in x for x in more)
    if learned:
        before = load_tensors(finished / "pretrain" / "encoder.safetensors")
        after = load_tensors(tmp_path / phase / "encoder.safetensors")
        moved = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
        assert moved <= {"routing", "downsampler"} if "routing" in more[0] else "vit" in moved


@pytest.mark.parametrize(
    ("sequence", "more", "said"),
    [
        ("language", [], "run the pretrain phase first"),
        ("pretrain,langage", [], "did you mean 'language'"),
        ("language", ["language.init_from=nowhere"], "nowhere holds no encoder"),
        ("pretrain,language", ["language.text_encoder=clipp"], "did you mean 'clip'"),
        ("pretrain,language", ['language.templates=["a thing"]'], "has no {}"),
        ("pretrain,probe", ["probe.labels=attributes"], "use probe.loss bce"),
        ("pretrain,probe", ["probe.coherence_weight=1"], "set probe.unfreeze"),
        ("pretrain,action", ["action.horizon=5"], "shorter than the horizon"),
        ("pretrain,action", ["action.action_dim=6"], "action_dim is 6"),
        ("pretrain,action", ["action.episodes.source=file", "action.episodes.root=gone"], "gone does not exist"),
    ],
)
def test_bad_input_stops_before_any_work(tmp_path, capsys, monkeypatch, sequence, more, said):
    monkeypatch.setattr("polyspace.train.loop.step_visits", lambda *_: pytest.fail("the loop has begun"))
    assert run_command(main, line(tmp_path / "x", sequence, *more)) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_an_encoder_of_another_shape_is_refused(finished, tmp_path, capsys):
    arguments = [*line(tmp_path, "probe", "encoder.dim=64"), "--init_from", str(finished)]
    assert run_command(main, arguments) == 2
    assert "encoder.dim is 64 in the configuration, and 32" in capsys.readouterr().err


def episodes(path: Path, change=lambda video, actions: None) -> Path:
    video, actions = torch.randint(0, 255, (5, 6, 24, 24, 3), dtype=torch.uint8), torch.randn(5, 5, 2)
    change(video, actions)
    save_tensors(path, {"video": video, "actions": actions})
    return path


def spoil(video, actions):
    actions[3, 2, 1] = float("nan")


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (spoil, [], "1 of 5 actions are not finite (the first is 2)"),
        (lambda *_: None, ["action.action_dim=3"], "actions of 2 dims, action.action_dim is 3"),
        (lambda *_: None, ["action.horizon=9"], "shorter than the horizon"),
        (lambda *_: None, ["action.size=20"], "not a multiple"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(finished, tmp_path, capsys, change, more, said):
    file = episodes(tmp_path / "e.safetensors", change)
    own = ["action.episodes.source=file", f"action.episodes.root={file}", "action.action_dim=2", *more]
    assert run_command(main, [*line(tmp_path / "x", "action", *own), "--init_from", str(finished)]) == 2
    assert said in capsys.readouterr().err


def test_episodes_of_a_file_train(finished, tmp_path):
    file = episodes(tmp_path / "e.safetensors")
    own = ["action.episodes.source=file", f"action.episodes.root={file}", "action.action_dim=2", "action.history=2"]
    assert run_command(main, [*line(tmp_path / "x", "action", *own), "--init_from", str(finished)]) == 0


def test_collected_episodes_are_the_same_for_the_same_seed_and_train(finished, tmp_path):
    pytest.importorskip("gym_pusht")
    from polyspace.train.collect_episodes import main as collect

    for name in ("a", "b"):
        words = ["--out", str(tmp_path / name), "--episodes", "5", "--steps", "4", "--size", "24"]
        assert run_command(collect, words) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    own = ["action.episodes.source=file", f"action.episodes.root={tmp_path / 'a'}", "action.action_dim=2"]
    assert run_command(main, [*line(tmp_path / "x", "action", *own), "--init_from", str(finished)]) == 0


def test_recorded_episodes_train_and_short_ones_are_named(finished, tmp_path, real_data, capsys):
    root = real_data / "droid" / "droid_subset"
    own = ["action.episodes.source=recorded", f"action.episodes.root={root}", "action.episodes.stride=4"]
    own += ["action.horizon=10"]  # 11 frames at every fourth need 41: the episode of 39 is too short
    assert run_command(main, [*line(tmp_path / "x", "action", *own), "--init_from", str(finished)]) == 0
    entry = manifest(tmp_path / "x")["action"]
    assert entry["data"]["episodes"] == 3 and len(entry["data"]["left_out"]) == 1
    assert {n.split("/")[-1] for n in entry["data"]["held_out_names"]} == {"0", "1", "2"}  # all cameras of one episode
    assert "shorter than the horizon" in capsys.readouterr().err


def test_captions_and_clips_must_be_as_many():
    from polyspace.data.clip_source import MemoryClips
    from polyspace.models.language import DummyTextEncoder, TwoTowers
    from polyspace.train.downstream.tokens import TokenReader
    from polyspace.train.language_align import LanguagePhase, Sentences

    with pytest.raises(UserError, match="2 captions for 3 clips"):
        MemoryClips(torch.zeros(3, 2, 8, 8, 3, dtype=torch.uint8), text=["a", "b"])
    phase = LanguagePhase(TokenReader(None), TwoTowers(8, 16, 4, heads=2), Sentences(DummyTextEncoder(16)), 0.1)
    batch = VideoBatch(
        features={"tokens": torch.randn(3, 4, 8)}, valid=torch.ones(3, 4, dtype=torch.bool), text=["a", "b"]
    )
    with pytest.raises(UserError, match="2 captions for 3 clips"):
        phase(batch)


def test_a_run_that_is_killed_in_each_phase_ends_in_the_same_bits(finished, tmp_path):
    later = PHASES[1:]
    ends, environment = {}, {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("whole", "killed"):
        arguments = line(tmp_path / name, ",".join(later), *(f"{phase}.steps=60" for phase in later))
        command = [sys.executable, str(REPOSITORY / "main.py"), *arguments, "--init_from", str(finished)]
        for phase in later if name == "killed" else ():
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
            latest = tmp_path / name / phase / "latest"
            deadline = time.monotonic() + 120
            while not latest.is_file() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            assert process.poll() is None, "it ended before it could be killed"
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        files = [f for f in sorted((tmp_path / name).rglob("*")) if f.suffix in (".safetensors", ".jsonl")]
        ends[name] = {f.relative_to(tmp_path / name): f.read_bytes() for f in files}
    assert ends["whole"] == ends["killed"]
    assert {f"{phase}.safetensors" for phase in later} <= {f.name for f in ends["whole"]}


def test_real_clips_go_through_language_and_probe(finished, tmp_path, real_data):
    files = sorted((real_data / "hmdb51").glob("*/*.avi"))
    files += [real_data / "ssv2" / "20bn-something-something-v2" / "166766.webm"]
    files += sorted((real_data / "clips").glob("*/*.*"))
    listed = tmp_path / "clips.csv"
    with open(listed, "w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["path", "label", "text"])
        rows.writerows(
            [f.relative_to(real_data), ("indoors", "outdoors")[i % 2], f"clip {i} of {f.parent.name}"]
            for i, f in enumerate(files)
        )
    own = ["data.dataset=videofolder", f"data.root={real_data}", f"data.list={listed}", "data.workers=0"]
    args = line(tmp_path / "x", "language,probe", *own)
    assert run_command(main, [*args, "--init_from", str(finished)]) == 0
    for phase in ("language", "probe"):
        entry = manifest(tmp_path / "x")[phase]
        assert entry["data"]["clips"] + entry["data"]["held_out"] == len(files) == 8
        assert entry["data"]["left_out"] == entry["data"]["missing"] == 0
        assert all(math.isfinite(v) for v in entry["last"].values() if isinstance(v, float))


def test_the_official_hmdb51_folder_probes_and_says_that_it_has_no_captions(finished, tmp_path, real_data, capsys):
    own = ["data.dataset=hmdb51", f"data.root={real_data / 'hmdb51'}", "data.workers=0"]
    start = ["--init_from", str(finished)]
    assert run_command(main, [*line(tmp_path / "x", "probe", *own), *start]) == 0
    data = manifest(tmp_path / "x")["probe"]["data"]
    assert data["clips"] + data["held_out"] == 5 and data["dataset"] == "hmdb51"
    assert run_command(main, [*line(tmp_path / "y", "language", *own), *start]) == 2
    assert "no clip of hmdb51 train has a caption" in capsys.readouterr().err
