"""The public command lines: their literal text parses, runs small, and ends in sentences on bad input."""

import itertools
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run, run_fails, run_ok

from polyspace.cli import VERBS
from polyspace.cli import main as polyspace_main
from polyspace.config import parse
from polyspace.data.featurize import FeaturizeConfig
from polyspace.data.synthetic import SyntheticConfig
from polyspace.train.eval_downstream import EvalConfig
from polyspace.train.train_converter import ConverterConfig
from polyspace.train.train_fusion import FusionConfig
from polyspace.utils.checkpoint_io import load_torch, save_torch
from polyspace.utils.trackers import EVENTS, METRICS

SYNTH = "python -m polyspace.data.synthetic --layout hmdb51 --out ./datasets/hmdb51 --clips 200 --seed 0"
LINES = {
    SyntheticConfig: SYNTH,
    FeaturizeConfig: "python -m polyspace.data.featurize --dataset hmdb51 --root ./datasets/hmdb51 --split train "
    "--out ./features --student vjepa2 --teachers videomae timesformer vivit --batch 2 --workers 2 --frames 16",
    ConverterConfig: "python -m polyspace.train.train_converter --features ./features/features_hmdb51_train.json "
    "--teachers videomae timesformer vivit --d_in 768 --d_out 768 --epochs 10 --batch 128 --lr 1e-3 "
    "--save_dir ./checkpoints/converters",
    FusionConfig: "python -m polyspace.train.train_fusion --dataset hmdb51 --root ./datasets/hmdb51 --split train "
    "--student vjepa2 --teachers videomae timesformer vivit --converters ./checkpoints/converters/converters_ep10.pt "
    "--classes 51 --frames 16 --batch 4 --epochs 5 --lr 3e-4 --save_dir ./checkpoints/fusion",
    EvalConfig: "python -m polyspace.train.eval_downstream --dataset hmdb51 --root ./datasets/hmdb51 "
    "--split validation --student vjepa2 --teachers videomae timesformer vivit "
    "--converters ./checkpoints/converters/converters_ep10.pt --fusion ./checkpoints/fusion/fusion_ep5.pt "
    "--frames 16 --batch 4",
}
_, FEATURIZE, CONVERT, FUSE, EVALUATE = LINES.values()


@pytest.mark.parametrize("config", LINES, ids=lambda c: c.__name__)
def test_the_literal_lines_parse(config):
    words = shlex.split(LINES[config])[3:]
    parsed = parse(config, words, prog="x", about="", example="")
    for flag, value in itertools.pairwise(words):
        if flag.startswith("--") and not isinstance(getattr(parsed, flag[2:]), list):
            held = getattr(parsed, flag[2:])
            assert type(held)(value) == held


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which all five lines have been run as typed."""
    folder = tmp_path_factory.mktemp("typed")
    for line in LINES.values():
        done = run_ok(line, folder)
        (folder / f"{line.split()[2].rpartition('.')[2]}.log").write_text(done.stdout + "\n---\n" + done.stderr)
    return folder


def test_the_lines_run_as_typed_and_leave_their_files(place):
    for name in (
        "features/features_hmdb51_train.json",
        "checkpoints/converters/converters_ep10.pt",
        "checkpoints/fusion/fusion_ep5.pt",
        "checkpoints/fusion/eval_hmdb51_validation.json",
        "checkpoints/fusion/eval_hmdb51_validation.md",
        "checkpoints/fusion/eval_hmdb51_validation_confusion.png",
    ):
        assert (place / name).is_file(), name
    for name in ("converters", "fusion"):  # events and metrics of the finished run, and nothing of it else
        folder = place / "checkpoints" / name
        assert list((folder / EVENTS).iterdir()) and (folder / METRICS).is_file() and not list(folder.glob("run-*"))
    for folder in ("converters", "fusion"):
        run_file = json.loads((place / "checkpoints" / folder / "run.json").read_text())
        assert {"config", "version", "argv", "environment"} <= run_file.keys()


def test_stand_ins_are_announced_everywhere(place):
    assert "STAND-IN" in (place / "featurize.log").read_text()
    assert "STAND-IN" in (place / "eval_downstream.log").read_text()
    manifest = json.loads((place / "features" / "features_hmdb51_train.json").read_text())
    assert {s["backend"] for s in manifest["spaces"].values()} == {"identity"}
    assert "STAND-IN" in (place / "checkpoints" / "fusion" / "eval_hmdb51_validation.md").read_text()
    result = json.loads((place / "checkpoints" / "fusion" / "eval_hmdb51_validation.json").read_text())
    assert len(result["stand_ins"]) == 4


def test_widths_are_facts_of_the_store_and_said_once(place):
    warnings = [x for x in (place / "train_converter.log").read_text().splitlines() if x.startswith("warning")]
    assert len(warnings) == 1 and "768" in warnings[0] and "1024" in warnings[0]


def test_the_evaluation_counts_every_clip_once_and_holds_both_heads(place):
    result = json.loads((place / "checkpoints" / "fusion" / "eval_hmdb51_validation.json").read_text())
    store = json.loads((place / "checkpoints" / "fusion" / "cache" / "features_hmdb51_validation.json").read_text())
    ids = [c["id"] for c in store["clips"]]
    assert result["clips"]["evaluated"] == len(ids) == len(set(ids)) == sum(map(sum, result["confusion"]))
    controls = {"fusion of shuffled teachers", "fusion of random maps"}
    assert set(result["heads"]) == {"fusion", "student only"} | controls == set(result["params"])
    for scores in result["heads"].values():
        assert {"top1", "top5", "mean_class", "top1_ci"} <= scores.keys() and scores["top5"] >= scores["top1"]
    assert abs(result["params"]["fusion"] / result["params"]["student only"] - 1) < 0.01
    assert set(result["retained"]) == {"vjepa2 (student)", "videomae", "timesformer", "vivit"}
    assert len(result["cka"]["spaces"]) == 7 and result["cka"]["debiased"][2][2] == pytest.approx(1)
    assert result["choice"]["head"] in ("fusion", "student only")
    cost = result["cost"]
    total = sum(cost[f"teacher {t}"]["flops"] for t in ("videomae", "timesformer", "vivit"))
    assert cost["all teachers"]["flops"] == total
    for size in ("1", "8"):
        peaks = {row: cost[row]["batches"][size]["peak_mib"] for row in cost}
        assert peaks["student + teachers"] > max(peaks[f"teacher {t}"] for t in ("videomae", "timesformer", "vivit"))
        assert cost["student"]["batches"][size]["p95_s"] >= cost["student"]["batches"][size]["p50_s"] > 0


def test_a_second_training_decodes_nothing_and_gives_the_same_file(place):
    file = place / "checkpoints" / "fusion" / "fusion_ep5.pt"
    before = load_torch(file)
    again = run_ok(FUSE, place)
    assert "nothing to decode" in again.stdout
    after = load_torch(file)
    assert set(before["heads"]) == {"fusion", "student", "shuffled", "random"}
    for name, state in before["heads"].items():
        assert all(torch.equal(state[k], after["heads"][name][k]) for k in state)


def test_a_labels_curve_holds_every_share_and_seed_and_goes_on_where_it_stopped(place):
    line = EVALUATE.replace("eval_downstream", "labels_curve").replace(
        "--fusion ./checkpoints/fusion/fusion_ep5.pt ", ""
    )
    line = (
        line.replace("--batch 4", "--batch 16") + " --out ./checkpoints/fusion --fractions 0.3 1 --seeds 2 --epochs 2"
    )
    out = place / "checkpoints" / "fusion"
    events = list((out / EVENTS).iterdir())  # train-fusion's; points are not tracked
    run_ok(line, place)
    file = out / "labels_curve_hmdb51_validation.json"
    first = json.loads(file.read_text())
    assert [p["fraction"] for p in first["points"]] == [0.3, 1.0]
    assert first["points"][0]["clips"] < first["points"][1]["clips"]
    for point in first["points"]:
        both = (point["heads"][head]["seeds"] for head in ("fusion", "student only"))
        gains = [a - b for a, b in zip(*both, strict=True)]
        assert point["difference"]["seeds"] == gains and len(gains) == 2
        assert {"fusion of shuffled teachers", "fusion of random maps"} < set(point["heads"])
    kept = {p: p.stat().st_mtime_ns for p in (out / "points").iterdir()}
    assert len(kept) == 4 and not list(out.glob("run-*")) and events == list((out / EVENTS).iterdir())
    next(iter(kept)).unlink()
    run_ok(line, place)
    again = {p: p.stat().st_mtime_ns for p in (out / "points").iterdir()}
    assert sum(again[p] == t for p, t in kept.items()) == 3
    assert json.loads(file.read_text())["points"] == first["points"]
    run_fails(line + " --split train", place, "training clips")
    run_fails(line + " --set fractions=[0]", place, "(0, 1]")


def test_strict_is_an_error_without_a_traceback(place):
    for line in (FEATURIZE, FUSE, EVALUATE):
        run_fails(line + " --strict", place, "--strict", "vjepa2")


def test_converters_that_do_not_fit_the_store_are_an_error(place, tmp_path):
    converters = place / "checkpoints" / "converters" / "converters_ep10.pt"
    content = load_torch(converters)
    content["spaces"]["vivit"]["dim"] = 5
    save_torch(tmp_path / "other.pt", content)
    line = FUSE.replace("./checkpoints/converters/converters_ep10.pt", str(tmp_path / "other.pt"))
    run_fails(line, place, "fitted on other dims of vivit")
    run_fails(FUSE.replace("--teachers videomae timesformer vivit", "--teachers videomae"), place, "converter to")
    run_fails(
        EVALUATE.replace(" ./checkpoints/converters/converters_ep10.pt", " nowhere.pt"),
        place,
        "nowhere.pt does not exist",
    )


def test_features_of_another_plan_do_not_fit(place):
    run_fails(
        EVALUATE.replace("--frames 16", "--frames 8") + " --no-latency --out ./o8", place, "other frames", "vjepa2"
    )


def test_clips_that_were_in_training_are_counted_and_said(place):
    """Another official fold's test list holds training clips of this one."""
    done = run_ok(EVALUATE + " --fold 2 --no-latency --out ./fold2", place)
    train = json.loads((place / "features" / "features_hmdb51_train.json").read_text())
    result = json.loads((place / "fold2" / "eval_hmdb51_validation.json").read_text())
    scored = json.loads((place / "fold2" / "cache" / "features_hmdb51_validation.json").read_text())
    common = {c["id"] for c in train["clips"]} & {c["id"] for c in scored["clips"]}
    assert common and result["clips"]["seen_in_training"] == len(common)
    assert f"{len(common)} of {len(scored['clips'])} clips were in training" in done.stderr
    assert "were in training" in (place / "fold2" / "eval_hmdb51_validation.md").read_text()


def test_too_many_unreadable_clips_fail_the_evaluation_after_it_is_written(place, tmp_path):
    shutil.copytree(place / "datasets", tmp_path / "datasets")
    for video in list((tmp_path / "datasets" / "hmdb51").glob("*/*.avi"))[::2]:
        video.write_bytes(b"")
    done = run(EVALUATE.replace("./checkpoints", f"{place}/checkpoints") + " --no-latency --out ./o", tmp_path)
    assert done.returncode == 1 and "--max_failed" in done.stderr and "failed: " in done.stdout
    assert (tmp_path / "o" / "eval_hmdb51_validation.json").is_file()


def test_several_processes_are_refused_where_one_is_meant(place):
    run_fails(FUSE, place, "without torchrun", WORLD_SIZE="2", RANK="0")


def test_bad_input_is_a_sentence_that_names_the_culprit(place, tmp_path):
    features = place / "features" / "features_hmdb51_train.json"
    run_fails(CONVERT.replace("--lr 1e-3", "--lr fast"), place, "--lr", "fast")
    run_fails(CONVERT.replace("vivit", "vivid"), place, "vivid", "did you mean 'vivit'")
    run_fails(CONVERT.replace("features_hmdb51_train", "absent"), place, "absent.json does not exist")
    run_fails(FEATURIZE.replace("--split train", "--split trian"), place, "--split trian", "did you mean 'train'")
    run_fails(FUSE.replace("--classes 51", "--classes 12"), place, "--classes 12")
    run_fails(FEATURIZE + " --checkpoint vivit=some/where", place, "--checkpoint vivit=some/where")
    run_fails(FEATURIZE + " --sampling index:0,3", place, "index:0,3", "vjepa2 takes 16")
    run_fails(CONVERT + " --set lr=[1", place, "--set lr=[1")
    half = tmp_path / "half.json"
    half.write_text(features.read_text()[:200])
    run_fails(CONVERT.replace("./features/features_hmdb51_train.json", str(half)), place, "half.json is not valid JSON")
    run_fails(FEATURIZE.replace("--out ./features", "--out /proc/nowhere"), place, "/proc/nowhere")


def test_a_class_without_training_clips_is_named(place, tmp_path):
    shutil.copytree(place / "datasets", tmp_path / "datasets")
    for video in (tmp_path / "datasets" / "hmdb51" / "wave").glob("*.avi"):
        video.unlink()
    done = run_ok(FUSE.replace("./checkpoints/converters", f"{place}/checkpoints/converters"), tmp_path)
    assert "1 of 51 classes have no training clip" in done.stderr and "wave" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    try:
        assert polyspace_main([verb, "--help"]) == 0
    except SystemExit as stop:  # argparse's own way out
        assert stop.code == 0
    text = capsys.readouterr().out
    assert "example:" in text and ("default" in text or verb == "doctor")


def test_help_and_a_mistyped_verb_from_the_shell(tmp_path):
    assert "example:" in run_ok("polyspace bundle --help", tmp_path).stdout
    assert "did you mean 'eval'" in run("polyspace evla", tmp_path).stderr


def test_doctor_names_what_is_missing_and_the_mend(tmp_path):
    text = run_ok("polyspace doctor", tmp_path).stdout
    for word in ("torch", "hevc", "facebook/vjepa2-vitl-fpc64-256", "hf download", "GPU"):
        assert word in text
