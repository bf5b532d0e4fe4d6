"""The border between files and the program: what a file holds is checked here, once, and what is wrong with it is one
sentence that names the file."""

import contextlib
import csv
import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from polyspace.utils.errors import UserError

MAX_BYTES = 512 << 20  # of a JSON file; the longest official list (Something-Something v2) has 30 MiB
MAX_DEPTH = 64  # of lists and dictionaries inside each other
SEAL = "seal"  # the key of a JSON file's sum of itself
_HALF = re.compile(r"\\u[dD][89abAB]")  # how half a character is written; two make one
# what a program runs into when values are not what it takes them for
FAULTS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError, csv.Error)


@contextlib.contextmanager
def reads(path: object, what: str, told: type[UserError] = UserError) -> Iterator[None]:
    """Whatever goes wrong within is the fault of the file, and told as a UserError (or one of its kinds) about it."""
    try:
        yield
    except UserError:
        raise
    except FAULTS as error:
        raise told(f"{what} {path} is not of the form expected ({brief(error)})") from error


def leaves_folder(name: str) -> bool:
    """Whether a name that a file gives lies outside the folder that it is meant to be in."""
    return Path(name).is_absolute() or ".." in Path(name).parts


def brief(error: BaseException) -> str:
    """An error in half a line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first:.160}" if first else type(error).__name__


def read_text(path: Path, what: str, encoding: str = "utf-8", errors: str = "strict") -> str:
    """A text file of ordinary size, or a UserError that names it."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{what} {path} has {size} bytes, more than the {MAX_BYTES} that are read")
        return Path(path).read_text(encoding, errors)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text ({brief(error)})") from error
    except OSError as error:
        raise UserError(f"{what} {path} can't be read ({error.strerror or error})") from error


def read_json(path: Path, what: str = "file", form: Any = None) -> Any:
    """Parsed JSON without its seal, or a UserError that names the file and the place of the fault. `form`: the type
    that it must have, as `check_form` takes it."""
    value = parse_json(read_text(path, what), path, what)
    if isinstance(value, dict) and SEAL in value and value.pop(SEAL) != sha256_json(value):
        raise UserError(f"{what} {path} is damaged: its content is not what was written (its sum differs)")
    return value if form is None else check_form(value, form, path, what)


def sha256_json(value: Any) -> str:
    """Digest of a value's canonical JSON: equal values, equal digest."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json_lines(path: Path, what: str, form: Any = dict[str, Any]) -> list[Any]:
    """The values of a file that has one a line; empty lines are passed over."""
    lines = read_text(path, what).splitlines()
    return [parse_json(line, f"{path} line {i}", what, form) for i, line in enumerate(lines, 1) if line.strip()]


def parse_json(text: str, where: object, what: str, form: Any = None) -> Any:
    """`read_json` of text that stands in `where`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {where} is not valid JSON ({error})") from error
    if _deep(value):
        raise UserError(f"{what} {where} is not valid JSON here: it is more than {MAX_DEPTH} levels deep")
    if _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{what} {where} holds half a character, which is no text") from error
    return value if form is None else check_form(value, form, where, what)


def _deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside = (v for node in level for v in (node.values() if isinstance(node, dict) else node))
        level = [v for v in inside if isinstance(v, dict | list)]
    return bool(level)


@lru_cache(maxsize=64)
def _adapter(form: Any) -> Any:
    return TypeAdapter(form)


def check_form(value: Any, form: Any, where: object, what: str) -> Any:
    """`value` as it is, if it is of the type `form` (a TypedDict, dict[str, int], …; nothing is converted, further keys
    are allowed); else a UserError that says which part is not."""
    try:
        _adapter(form).validate_python(value, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        words = fault["msg"][0].lower() + fault["msg"][1:]
        held = "" if fault["type"] == "missing" else f" {fault['input']!r:.80}"
        raise UserError(f"{what} {where} is not of the form expected: {place or 'it'}{held}: {words}") from error
    return value
