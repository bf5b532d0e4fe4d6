"""Configuration: defaults < YAML (`--config`) < public flags < `--set section.key=value`, checked before any work.

A command's config is a pydantic class next to the command; its fields are its flags, spelled alike. Nothing is
converted silently: 1.5 for a whole number, an unknown key or a word for a number is an error that names it.
"""

import argparse
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from polyspace.utils.errors import UserError, did_you_mean
from polyspace.utils.log import quiet_libraries
from polyspace.utils.reading import FAULTS, brief, read_text


class Config(BaseModel):
    """Base of all config classes: unknown keys are refused, values are checked, instances don't change.

    `words` are fields that a command line gives without a flag, in order; `short` letters of flags, as in {"out": "o"}.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    words: ClassVar[tuple[str, ...]] = ()
    short: ClassVar[dict[str, str]] = {}


C = TypeVar("C", bound=Config)
MAX_YAML = 1 << 17  # characters, and values once all that is named is put in its places


def validate(cls: type[C], values: dict[str, Any], where: str = "configuration") -> C:
    """Build `cls`, turning pydantic's report into one sentence about the first fault."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _fields_at(cls, fault["loc"][:-1])
            raise UserError(f"{where}: unknown key '{key:.200}'{did_you_mean(str(fault['loc'][-1]), known)}") from error
        if fault["type"] == "missing":
            raise UserError(f"{where}: --{key} is required") from error
        message = fault["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        raise UserError(f"{where}: --{key:.200} {fault.get('input')!r:.200}: {message}") from error


def _fields_at(cls: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        cls = field.annotation
    return list(cls.model_fields)


def read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(Path(path), "--config")
    if len(text) > MAX_YAML:
        raise UserError(f"--config {path} has {len(text)} characters, more than the {MAX_YAML} that are read")
    loaded = _plain_yaml(text, f"--config {path}")
    if loaded is not None and not isinstance(loaded, dict):
        raise UserError(f"--config {path} must hold keys and values, not a {type(loaded).__name__}")
    return loaded or {}


def _plain_yaml(text: str, where: str) -> Any:
    """The value; UserError where it is no YAML, or grows without end: what is named once may be there any number of
    times, and in itself."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, *FAULTS) as error:
        raise UserError(f"{where} is not valid YAML ({brief(error)})") from error
    level, parts = [value], 0
    while level := [v for node in level for v in _parts_of(node)]:
        parts += len(level)
        if parts > MAX_YAML:
            raise UserError(f"{where} holds more than {MAX_YAML} values")
    return value


def _parts_of(node: Any) -> list[Any]:
    return [*node, *node.values()] if isinstance(node, dict) else list(node) if isinstance(node, list | tuple) else []


def apply_set(values: dict[str, Any], assignments: Sequence[str]) -> None:
    """`section.key=value` into nested dicts; the value is read as YAML, so 1e-4, true and [a, b] mean what they say."""
    for text in assignments:
        key, sign, raw = text.partition("=")
        if not sign or not key:
            raise UserError(f"--set {text:.200}: expected section.key=value")
        target = values
        *sections, last = key.split(".")
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {text:.200}: '{section:.80}' is not a section")
        target[last] = _plain_yaml(raw, f"--set {text:.200}") if raw else None


class _Parser(argparse.ArgumentParser):
    """argparse whose faults are our one-sentence errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _flag(name: str, annotation: Any) -> tuple[str, dict[str, Any]]:
    """The argparse options of a field. Types stay strings: pydantic converts, with better words."""
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
    origin = typing.get_origin(annotation)
    if annotation is bool:
        options |= {"action": argparse.BooleanOptionalAction}
    elif origin in (list, tuple):
        options |= {"nargs": "+", "metavar": name.upper()}
    else:
        options |= {"metavar": name.upper()}
    return f"--{name}", options


def is_section(annotation: Any) -> bool:
    """A field that holds keys of its own: it has no flag, but a section in YAML and in --set."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def build_parser(cls: type[Config], prog: str, about: str, example: str) -> argparse.ArgumentParser:
    """A parser whose flags are the fields of `cls`; help shows each default and one example line."""
    parser = _Parser(
        prog=prog,
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sections = []
    for name, field in cls.model_fields.items():
        if is_section(field.annotation):
            sections.append(name)
            continue
        flag, options = _flag(field.alias or name, field.annotation)
        default = "required" if field.is_required() else f"default: {_shown(field.get_default())}"
        text = f"{field.description or ''} ({default})".strip()
        if name in cls.words:
            parser.add_argument(name, help=(field.description or "").replace("%", "%%"))
            continue
        letters = [f"-{cls.short[name]}"] if name in cls.short else []
        parser.add_argument(*letters, flag, help=text.replace("%", "%%"), **options)
    also = f", and the sections {', '.join(sections)}" if sections else ""
    parser.add_argument("--config", metavar="FILE", help=f"YAML file with any of these flags as keys{also}")
    last = "last word on one key; repeat" + (", e.g. --set pretrain.steps=50" if "pretrain" in sections else "")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=last)
    return parser


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def parse(cls: type[C], argv: Sequence[str], *, prog: str, about: str, example: str) -> C:
    """Command line -> validated config. Raises UserError; `--help` prints and exits 0."""
    parser = build_parser(cls, prog, about, example)
    spaces, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].split("=")[0]
        flags = [option for action in parser._actions for option in action.option_strings]
        hint = did_you_mean(word, flags) if word.startswith("-") else ""
        raise UserError(
            f"unknown argument {unknown[0]!r}{hint}" if len(hint) < 60 else f"unknown argument {unknown[0]!r}"
        )
    flags_given = vars(spaces)
    config_file, assignments = flags_given.pop("config"), flags_given.pop("set")
    values = read_yaml(Path(config_file)) if config_file else {}
    if config_file:
        validate_keys(cls, values, f"--config {config_file}")
    values |= flags_given
    apply_set(values, assignments)
    return validate(cls, values, prog)


def validate_keys(cls: type[Config], values: dict[str, Any], where: str) -> None:
    """Unknown top-level keys of a YAML file are reported with the file's name."""
    known = {field.alias or name for name, field in cls.model_fields.items()}
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key!s:.200}'{did_you_mean(str(key), known)}")


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's body and turn every failure into one sentence and an exit code.

    0 done; 1 finished, but with a result that is an error (too many failed clips); 2 bad input; 130 interrupted.
    POLYSPACE_DEBUG=1 lets tracebacks through.
    """
    import os

    quiet_libraries()
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return main(args) or 0
    except UserError as error:
        if os.environ.get("POLYSPACE_DEBUG"):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was finished is kept, run the same line again to go on\n")
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if os.environ.get("POLYSPACE_DEBUG"):
            raise
        sys.stderr.write(f"error: {describe(error)}\n")
        return 2


def describe(error: BaseException) -> str:
    """One line for an error that nobody foresaw, naming the file where the system names one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first} (POLYSPACE_DEBUG=1 shows where)"
