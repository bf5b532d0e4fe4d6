"""Defaults < YAML < flags < --set, and faults are one sentence."""

from pathlib import Path

import pytest
from pydantic import Field

from polyspace.config import Config, build_parser, parse, run_command
from polyspace.utils.errors import UserError


class Inner(Config):
    steps: int = 3
    rate: float = 0.1


class Outer(Config):
    lr: float = Field(1e-3, gt=0, description="learning rate")
    epochs: int = 5
    names: list[str] = Field(["a", "b"])
    quick: bool = False
    out: Path = Path("here")
    inner: Inner = Inner()


def read(*argv: str) -> Outer:
    return parse(Outer, argv, prog="test", about="", example="test --lr 1")


def test_precedence_is_defaults_then_yaml_then_flags_then_set(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("lr: 1e-4\nepochs: 7\ninner: {steps: 9}\n")
    assert read().lr == 1e-3
    assert read("--config", str(file)).lr == 1e-4  # YAML reads 1e-4 as a word; it must still become a number
    assert read("--config", str(file)).inner.steps == 9
    assert read("--config", str(file), "--epochs", "8").epochs == 8
    assert read("--config", str(file), "--epochs", "8", "--set", "epochs=9", "--set", "inner.rate=1e-5").epochs == 9
    assert read("--set", "inner.rate=1e-5").inner.rate == 1e-5


def test_a_flag_left_out_does_not_hide_the_yaml_value(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("quick: true\nnames: [x]\n")
    config = read("--config", str(file), "--lr", "2")
    assert config.quick and config.names == ["x"] and config.lr == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--epochs", "1.5"], ["epochs", "1.5"]),
        (["--lr", "fast"], ["lr", "fast"]),
        (["--lr", "-1"], ["lr", "greater than 0"]),
        (["--epoch", "3"], ["--epoch", "did you mean '--epochs'"]),
        (["--set", "inner.stepz=3"], ["stepz", "did you mean 'steps'"]),
        (["--set", "novalue"], ["--set novalue"]),
        (["--names"], ["--names"]),
        (["--config", "absent.yaml"], ["absent.yaml", "does not exist"]),
    ],
)
def test_a_fault_is_a_sentence_that_names_the_culprit(argv, words):
    with pytest.raises(UserError) as error:
        read(*argv)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_key_in_a_yaml_file_names_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epoch: 3\n")
    with pytest.raises(UserError, match=r"c\.yaml: unknown key 'epoch'; did you mean 'epochs'"):
        read("--config", str(file))


def test_broken_yaml_names_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("a: [1,\n")
    with pytest.raises(UserError, match=r"c\.yaml is not valid YAML"):
        read("--config", str(file))


def test_help_shows_defaults_and_an_example(capsys):
    text = build_parser(Outer, "test", "about", "test --lr 1").format_help()
    assert "learning rate (default: 0.001)" in text and "test --lr 1" in text


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("the file x is bad"), 2, "error: the file x is bad\n"),
        (OSError(28, "No space left on device", "/x/y"), 2, "error: /x/y: No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("odd\nthing"), 2, "error: RuntimeError: odd"),
    ],
)
def test_a_command_ends_in_a_sentence_and_a_code(error, code, text, capsys):
    def body(_):
        raise error

    assert run_command(body, []) == code
    assert text in capsys.readouterr().err
