"""main.py: phases, configuration and what a run leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from polyspace.config import run_command, validate
from polyspace.models.vjepa.saved import load_encoder
from polyspace.train.encoders import EncoderConfig, build_encoder
from polyspace.train.run import RunConfig, config_hash, main, run
from polyspace.utils.checkpoint_io import load_tensors
from polyspace.utils.errors import UserError
from polyspace.utils.trackers import EVENTS

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "data.clips=12",
    "data.size=24",
    "data.frames=6",
    "encoder.dim=32",
    "encoder.depth=1",
    "encoder.cell_dim=32",
    "pretrain.batch=8",
    "pretrain.log_every=1",
    "pretrain.save_every=2",
]


def line(folder: Path, steps: int = 3, *more: str) -> list[str]:
    sets = [f"pretrain.steps={steps}", *SMALL, *more]
    return ["--work_dir", str(folder), "--sequence", "pretrain", *(x for s in sets for x in ("--set", s))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run_command(main, line(folder)) == 0
    return folder


def test_a_run_leaves_checkpoint_metrics_pictures_and_manifest(finished):
    manifest = json.loads((finished / "pipeline_manifest.json").read_text())["phases"]["pretrain"]
    assert manifest["checkpoint"].endswith("step_000003") and Path(manifest["checkpoint"]).is_dir()
    assert {"loss.png", "skill.png", "chunks.png"} <= {Path(p).name for p in manifest["pictures"]}
    assert all(Path(p).stat().st_size > 1000 for p in manifest["pictures"])
    rows = [json.loads(row) for row in (finished / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    monitors = {"energy", "skill", "effective_rank", "position_std", "chunks", "boundary_rate", "usage", "grad_norm"}
    assert monitors <= rows[0].keys()
    run = json.loads((finished / "run.json").read_text())
    assert run["config"]["pretrain"]["steps"] == 3
    assert list((finished / "pretrain" / EVENTS).iterdir())


def test_where_metrics_go_is_no_part_of_what_a_phase_depends_on():
    hashes = {
        config_hash(validate(RunConfig, {"track": names}), "pretrain") for names in (["none"], ["tensorboard"], [])
    }
    assert len(hashes) == 1


def test_the_encoder_that_was_written_is_the_target(finished):
    encoder = load_encoder(finished / "pretrain")
    kept = load_tensors(finished / "pretrain" / "step_000003" / "model.safetensors", "checkpoint")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, kept[f"target.model.{name}"])
    assert not torch.equal(kept["target.model.vit.norm.bias"], kept["encoder.vit.norm.bias"]) and not encoder.training


def test_a_damaged_encoder_is_refused(finished, tmp_path):
    for name in ("encoder.json", "encoder.safetensors"):
        (tmp_path / name).write_bytes((finished / "pretrain" / name).read_bytes())
    data = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "encoder.safetensors").write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged"):
        load_encoder(tmp_path)


def test_a_finished_phase_is_skipped_and_another_configuration_refused(finished, capsys):
    assert run_command(main, line(finished)) == 0
    assert "finished before" in capsys.readouterr().out
    assert run_command(main, line(finished, 3, "pretrain.lr=0.5")) == 2
    assert "other settings" in capsys.readouterr().err


def test_other_clips_of_the_same_number_are_another_run(finished, capsys):
    assert run_command(main, line(finished, 3, "data.frames=8")) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_finished_phase_whose_files_are_gone_is_made_again(finished, tmp_path):
    assert run_command(main, line(tmp_path)) == 0
    (tmp_path / "pretrain" / "encoder.safetensors").unlink()
    assert run_command(main, line(tmp_path)) == 0
    assert (tmp_path / "pretrain" / "encoder.safetensors").is_file()
    (tmp_path / "pretrain" / "metrics.jsonl").unlink()
    (tmp_path / "pipeline_manifest.json").unlink()
    assert run_command(main, line(tmp_path)) == 0


def test_ranks_that_cannot_meet_or_never_met_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert run_command(main, line(tmp_path / "a")) == 2
    assert "RANK, MASTER_ADDR, MASTER_PORT is not set: start several ranks with torchrun" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"torchrun starts main\.py only"):
        run(RunConfig(work_dir=tmp_path / "a"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sequence", "pretrian"], "did you mean 'pretrain'"),
        (["--sequence", "pretrain,pretrain"], "twice"),
        (["--sequence", ","], "names no phase"),
        (["--set", "pretrain.stepps=5"], "did you mean 'steps'"),
        (["--set", "pretrain.steps=1.5"], "pretrain.steps"),
        (["--set", "encoder.preset=tinny"], "did you mean 'tiny'"),
        (["--set", "encoder.arch=tubelet", "--set", "encoder.soft=false"], "no meaning for arch tubelet"),
        (["--set", "data.dataset=ssv2"], "data.root is required"),
        (["--set", "data.frames=4"], "data.frames 4"),
        (["--set", "pretrain.batch=6", "--set", "pretrain.accumulate=4"], "does not divide into 4"),
        (["--set", "pretrain.ema=[1.5, 1.5]"], "pretrain.ema"),
        (["--set", "pretrain.budgets=[0.5, 0.1]"], "the lower share comes first"),
        (["--set", "pretrain.budgets=[3.0, 4.0]"], "pretrain.budgets"),
        (["--set", "pretrain.tube_ratios=[]"], "pretrain.tube_ratios"),
        (["--set", "encoder.max_chunks=0"], "encoder.max_chunks"),
        (["--set", "pretrain.target_layers=9"], "target_layers is 9"),
        (["--set", "encoder.arch=tubelet", "--set", "pretrain.entropy_weight=1"], "no meaning for arch tubelet"),
        (["--set", "data.size=20"], "12×20×20 does not divide"),
        (["--set", "pretrain.target=chunk", "--set", "encoder.arch=tubelet"], "needs a chunk encoder"),
    ],
)
def test_bad_input_is_a_sentence_before_any_work(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("polyspace.train.loop.step_visits", lambda *_: pytest.fail("the loop has begun"))
    assert run_command(main, ["--work_dir", str(tmp_path / "x"), "--set", "data.clips=4", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_config_files_are_valid_and_their_models_build(file):
    config = RunConfig.model_validate(yaml.safe_load(file.read_text()))
    with torch.device("meta"):
        build_encoder(config.encoder)
    assert file.read_text().startswith("# python main.py")


def test_the_tiny_file_is_the_default():
    values = yaml.safe_load((REPOSITORY / "configs" / "tiny.yaml").read_text())
    assert RunConfig.model_validate(values) == RunConfig.model_validate({})


def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    arguments = line(tmp_path / "killed", 8)
    command = [sys.executable, str(REPOSITORY / "main.py"), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    latest = tmp_path / "killed" / "pretrain" / "latest"
    deadline = time.monotonic() + 120
    while not latest.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for folder in ("killed", "whole"):
        arguments[1] = str(tmp_path / folder)
        done = subprocess.run([sys.executable, str(REPOSITORY / "main.py"), *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    a, b = (tmp_path / f / "pretrain" for f in ("killed", "whole"))
    for name in ("encoder.safetensors", "metrics.jsonl", "step_000008/model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_real_files_in_the_ssv2_layout_start_the_real_configuration(tmp_path, capsys):
    from polyspace.data.synthetic import main as synthetic

    root = tmp_path / "ssv2"
    assert run_command(synthetic, ["--layout", "ssv2", "--out", str(root), "--clips", "6", "--seed", "0"]) == 0
    config = str(REPOSITORY / "configs" / "pretrain_ssv2.yaml")
    small = [
        "data.size=32",
        "data.frames=8",
        f"data.root={root}",
        "data.workers=1",
        "encoder.dim=32",
        "encoder.depth=1",
    ]
    small += ["encoder.heads=2", "encoder.cell_dim=32", "encoder.conv_width=4", "encoder.conv_blocks=[1, 1]"]
    small += ["pretrain.steps=2", "pretrain.batch=4", "pretrain.accumulate=2", "pretrain.log_every=1"]
    small += ["pretrain.predictor_width=48", "pretrain.predictor_depth=1"]
    sets = [x for s in small for x in ("--set", s)]
    assert run_command(main, ["--work_dir", str(tmp_path / "out"), "--config", config, *sets]) == 0
    last = json.loads((tmp_path / "out" / "pipeline_manifest.json").read_text())["phases"]["pretrain"]["last"]
    assert last["step"] == 2 and last["energy"] > 0


WAITS = """
import multiprocessing, time, torch
from polyspace.data.clip_source import FileClips
from polyspace.data.records import ClipRecord
from polyspace.data.sampling import Sampling
from polyspace.utils.plan import Plan
if __name__ == "__main__":
    plan = Plan(frames=4, resize=16, crop=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    from pathlib import Path
    source = FileClips([ClipRecord("a", Path("gone.mp4"), 0, "a")], plan, Sampling.parse("segments"), 1, 1.0)
    source.prefetch(torch.arange(1))
    source._ahead[0].exception()
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(100)
"""


def test_workers_end_with_a_killed_run_and_leave_signals_to_it(tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    line = [sys.executable, str(tmp_path / "waits.py")]
    parent = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    assert all(alive(pid) for pid in workers)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not any(alive(pid) for pid in workers):
            return
        time.sleep(0.1)
    raise AssertionError("a worker outlived its run")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_unreadable_files_are_named_left_out_and_counted(tmp_path):
    from polyspace.data.clip_source import FileClips
    from polyspace.data.records import ClipRecord
    from polyspace.data.sampling import Sampling
    from polyspace.data.video_writer import write_video
    from polyspace.utils.plan import Plan

    clip = torch.randint(0, 255, (8, 16, 16, 3), dtype=torch.uint8)
    write_video(tmp_path / "good.mp4", clip.numpy(), 8)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    names = ["bad", "good", "good2"]
    (tmp_path / "good2.mp4").write_bytes((tmp_path / "good.mp4").read_bytes())
    records = [ClipRecord(n, tmp_path / f"{n}.mp4", 0, n) for n in names]
    plan = Plan(frames=4, resize=16, crop=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    for workers in (0, 1):
        source = FileClips(records, plan, Sampling.parse("segments"), workers, max_failed=0.5)
        batch = source.batch(torch.arange(3))
        assert batch.video.shape == (2, 4, 16, 16, 3) and batch.rows == (1, 2) and batch.indices == [1, 2]
        assert source.batch(torch.tensor([0])) is None
        assert list(source.failed) == ["bad"] and source.first(1).shape[0] == 1
        source.close()
    first = FileClips(records, plan, Sampling.parse("segments"), 0, 0.5, tmp_path / "failed.json")
    first.batch(torch.arange(3))
    again = FileClips(records, plan, Sampling.parse("segments"), 0, 0.5, tmp_path / "failed.json")
    assert again.failed == first.failed and list(again.failed) == ["bad"]
    strict = FileClips(records, plan, Sampling.parse("segments"), 0, max_failed=0.1)
    with pytest.raises(UserError, match="more than the allowed 10%"):
        strict.batch(torch.arange(3))


def test_every_visit_of_a_file_has_frames_and_a_crop_of_its_own(tmp_path):
    from polyspace.data.clip_source import FileClips
    from polyspace.data.records import ClipRecord
    from polyspace.data.sampling import Sampling
    from polyspace.data.video_writer import write_video
    from polyspace.utils.plan import Plan

    clip = torch.arange(24)[:, None, None, None].mul(10).expand(-1, 16, 24, 3).clone()
    clip[..., 1] = torch.arange(24) * 10  # green tells the column, red the frame
    write_video(tmp_path / "a.mp4", clip.to(torch.uint8).numpy(), 8)
    records = [ClipRecord(n, tmp_path / "a.mp4", 0, n) for n in ("a", "b")]
    plan = Plan(frames=4, resize=16, crop=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)

    def seen(visit: int, seed: int | None = 3, workers: int = 0) -> torch.Tensor:
        source = FileClips(records, plan, Sampling.parse("segments"), workers, seed=seed)
        video = source.batch(torch.tensor([visit])).video[0]
        source.close()
        return video

    assert torch.equal(seen(0), seen(0, workers=1)) and torch.equal(seen(0, None), seen(2, None))
    firsts = [seen(visit) for visit in (0, 1, 2, 4)]  # both clips are one file: visits differ, not clips
    for red_or_green in (0, 1):
        kinds = {tuple(v[:, 8, 8, red_or_green].mul(25).round().int().tolist()) for v in firsts}
        assert len(kinds) == len(firsts)
    assert torch.equal(seen(2), firsts[2]) and not torch.equal(seen(2, seed=4), firsts[2])


def test_encoder_keys_mirror_the_constructor():
    import inspect

    from polyspace.models.vjepa.vit import HNetViT

    built = set(inspect.signature(HNetViT.__init__).parameters) - {"self"}
    assert built == set(EncoderConfig.model_fields) - {"arch", "preset"}
