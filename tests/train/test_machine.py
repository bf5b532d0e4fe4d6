"""What goes together of devices, engines and DeepSpeed's file, before any work."""

import json
import re
from pathlib import Path

import pytest

from polyspace.config import run_command, validate
from polyspace.train.engine_deepspeed import full_config, read_config
from polyspace.train.machine import describe, make_machine
from polyspace.train.run import RunConfig, dividing, main
from polyspace.train.settings import TrainingConfig
from polyspace.utils.errors import UserError

ZERO = Path(__file__).parents[2] / "configs" / "deepspeed_zero2.json"


def test_one_process_is_the_plain_machine():
    made = make_machine("cpu")
    assert made.kind == "plain" and made.world.data_size == 1 and describe(made) == "plain on one process, fp32, cpu"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "fsdp"}, "start them with torchrun"),
        ({"context": 2}, "start them with torchrun"),
        ({"engine": "deepspeed", "context": 2}, "not with DeepSpeed"),
        ({"deepspeed_config": ZERO}, "is for --use_deepspeed 1"),
        ({"engine": "deepspeed"}, "needs its --deepspeed_config FILE"),
    ],
)
def test_what_does_not_go_together_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        make_machine("cpu", **given)


@pytest.mark.parametrize(
    ("found", "said"), [(None, r"pip install 'polyspace\[deepspeed\]'"), (1, "at least two ranks")]
)
def test_deepspeed_needs_its_package_and_a_launcher(found, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    line = ["--use_deepspeed", "1", "--deepspeed_config", str(ZERO), "--work_dir", str(tmp_path / "out")]
    assert run_command(main, line) == 2
    assert re.search(said, capsys.readouterr().err) and not (tmp_path / "out").exists()


def test_deepspeeds_file_takes_the_batch_from_the_phase():
    values = full_config(read_config(ZERO), ZERO, TrainingConfig(batch=32, accumulate=2, clip_norm=0.5), 4)
    assert (values["train_batch_size"], values["train_micro_batch_size_per_gpu"]) == (32, 4)
    assert (values["gradient_accumulation_steps"], values["gradient_clipping"]) == (2, 0.5)
    assert values["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_batch_size": 64}, "train_batch_size is 64, the phase's configuration makes it 32"),
        ({"gradient_clipping": 0.1}, "gradient_clipping is 0.1"),
        ({"zero_optimization": {"stage": 3}}, "stage 3; use --engine fsdp"),
        ({"optimizer": {"type": "Adam"}}, "'optimizer' is set by the phase's configuration"),
        ({"bf16": {"enabled": True}}, "use --precision bf16"),
    ],
)
def test_a_contradiction_in_deepspeeds_file_names_the_key(tmp_path, changes, said):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(json.loads(ZERO.read_text()) | changes))
    with pytest.raises(UserError, match=said):
        full_config(read_config(path), path, TrainingConfig(batch=32), 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "does not exist"), ("{", "is not valid JSON"), ("[]", "no section zero"), ("{}", "no section zero")],
)
def test_a_missing_or_broken_file_is_named(tmp_path, text, said):
    path = tmp_path / "zero.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_config(path)


def test_half_precision_of_deepspeed_may_be_switched_off(tmp_path):
    path = tmp_path / "zero.json"
    values = {"bf16": {"enabled": False}, "zero_optimization": {"stage": 1}}
    path.write_text(json.dumps(values))
    assert read_config(path) == values


def test_a_default_batch_grows_to_what_the_ranks_can_share_and_a_given_one_is_an_error(capsys):
    made = dividing(RunConfig(), ["pretrain", "language"], 8)
    assert (made.pretrain.batch, made.language.batch) == (8, 64) and dividing(
        RunConfig(), ["pretrain"], 2
    ) == RunConfig()
    assert "pretrain.batch is 8 instead of 4" in capsys.readouterr().err
    given = validate(RunConfig, {"probe": {"batch": 6, "accumulate": 2}})
    with pytest.raises(UserError, match=r"probe\.batch: a batch of 6 does not divide into 2 micro-batches on 2 ranks"):
        dividing(given, ["probe"], 2)
