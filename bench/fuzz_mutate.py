"""Mutations for bench/fuzz.py: a file's bytes become others, by a seeded generator and by what kind of file it is.

`mutate(rng, name, data, others, outside)`: `others` are files to splice with, `outside` a folder that nobody may read.
"""

import copy
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

Rng = random.Random
NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x100, 0x3030, 0x7FFF, 0x8000, 0xFFFF, 1 << 20, 1 << 24, 0x7FFFFFFF, 1 << 31,
           0xFFFFFFFF, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
MARKS = (b"moov", b"trak", b"mvhd", b"tkhd", b"mdhd", b"stsd", b"avc1", b"avcC", b"hvc1", b"stts", b"ctts", b"stss",
         b"stsz", b"stsc", b"stco", b"edts", b"elst", b"mdat", b"avih", b"strh", b"strf", b"idx1", b"LIST", b"RIFF",
         b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\x15I\xa9f", b"\x16T\xaek", b"\x1fC\xb6u", b"\xb0", b"\xba", b"PAR1",
         b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"NUMPY",
         b"IHDR", b"IDAT", b"\xff\xc0", b"\xff\xc4", b"\xff\xdb")  # fmt: skip
DEEP = 100_000


class Bomb:
    """A pickle that would write a file, were it ever executed."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.makedirs, (self.place,)


def mutate(rng: Rng, name: str, data: bytes, others: Sequence[bytes], outside: str) -> bytes:
    """Other bytes for the file `name`: two times in three by its kind, else as if it had none."""
    kind = name.rpartition(".")[2].lower()
    if kind in KINDS and rng.random() < 0.67:
        return KINDS[kind](rng, data, outside)
    return any_bytes(rng, data, others)


# -- bytes -----------------------------------------------------------------------------------------------------------


def any_bytes(rng: Rng, data: bytes, others: Sequence[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        rng.choice((_flip, _run, _cut, _repeat, _delete, _integer, _integer, _marked, _marked, _marked))(rng, out)
    if others and rng.random() < 0.1:
        other = rng.choice(others)
        at, start = rng.randrange(len(out) + 1), rng.randrange(len(other) + 1)
        out[at:] = other[start : start + rng.choice((64, 4096, len(other)))]
    return bytes(out)


def _place(rng: Rng, out: bytearray) -> int:
    """Heads of files are hit as often as all that follows."""
    return rng.randrange(min(len(out), 256) if rng.random() < 0.5 else len(out)) if out else 0


def _flip(rng: Rng, out: bytearray) -> None:
    for _ in range(rng.choice((1, 8, 64))):
        if out:
            out[_place(rng, out)] ^= 1 << rng.randrange(8)


def _run(rng: Rng, out: bytearray) -> None:
    at, length = _place(rng, out), rng.choice((1, 4, 16, 256))
    fill = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    out[at : at + length] = fill[: len(out) - at]


def _cut(rng: Rng, out: bytearray) -> None:
    del out[rng.randrange(len(out) + 1) :]


def _repeat(rng: Rng, out: bytearray) -> None:
    at, length = _place(rng, out), rng.choice((4, 64, 1024))
    out[at:at] = out[at : at + length] * rng.choice((1, 2, 50))


def _delete(rng: Rng, out: bytearray) -> None:
    at = _place(rng, out)
    del out[at : at + rng.choice((1, 4, 64, 4096))]


def _put(rng: Rng, out: bytearray, at: int) -> None:
    size = rng.choice((1, 2, 4, 4, 8))
    value = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
    out[at : at + size] = value.to_bytes(size, rng.choice(("big", "little")))[: max(0, len(out) - at)]


def _integer(rng: Rng, out: bytearray) -> None:
    _put(rng, out, _place(rng, out))


def _marked(rng: Rng, out: bytearray) -> None:
    """An integer near a word that announces a structure: sizes, counts, widths and heights stand there."""
    there = [mark for mark in MARKS if mark in out]
    if there:
        mark = rng.choice(there)
        at = out.find(mark, rng.randrange(len(out)) if rng.random() < 0.5 else 0)
        _put(rng, out, max(0, max(at, 0) + rng.randrange(-8, 64)))


# -- JSON ------------------------------------------------------------------------------------------------------------


class Raw:
    """Text that stands in the JSON as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


def nasty(rng: Rng, outside: str) -> Any:
    """A value that is of another type, too large, too deep, or points elsewhere."""
    return rng.choice(
        (None, True, False, -1, 0, 1, 2, 3.5, -0.5, 1 << 31, 1 << 63, 10**30, 1e308, float("nan"), float("inf"),
         "", " ", "1", "x", "a" * 10_000, "../outside/x", "../../outside/x", f"{outside}/x", "..\\outside", "x\0y",
         "\ud800", "é\u202e\u0301", "~", "-1", "__proto__", "{0.__class__}", "%s%n", [], {}, [[]], [None], {"": None},
         [1, "a", {}], {"x": {"y": []}}, ["a"] * 3, [1e400] * 7, [-1], [1 << 40] * 3, Raw("[" * DEEP + "]" * DEEP),
         Raw('{"a":' * DEEP + "1" + "}" * DEEP), Raw("1" * 5000), Raw("1e99999"), Raw("[" * 900 + "]" * 900))
    )  # fmt: skip


def dumps(value: Any) -> str:
    raws: list[str] = []

    def plain(item: Any) -> Any:
        if isinstance(item, Raw):
            raws.append(item.text)
            return f"@raw{len(raws) - 1}@"
        if isinstance(item, dict):
            return {k: plain(v) for k, v in item.items()}
        return [plain(v) for v in item] if isinstance(item, list) else item

    text = json.dumps(plain(value))
    for number, raw in enumerate(raws):
        text = text.replace(f'"@raw{number}@"', raw)
    return text


def change(rng: Rng, value: Any, outside: str) -> Any:
    """The value with one to three of its parts changed."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder: Any = root
        key: Any = 0
        while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
            holder = holder[key]
            key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        what = rng.randrange(10)
        if what < 6 or holder is root:
            holder[key] = nasty(rng, outside)
        elif what == 6:
            del holder[key]
        elif what == 7 and isinstance(holder, dict):
            holder[rng.choice(("x", "", "../outside", "a\0", f"{key} "))] = holder.pop(key)
        elif what == 8:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
        elif isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[key] = next(iter(holder.values()))
        if isinstance(root[0], Raw):
            break
    return root[0]


def _json(rng: Rng, data: bytes, outside: str) -> bytes:
    try:
        text = dumps(change(rng, json.loads(data), outside))
    except ValueError:
        return any_bytes(rng, data, ())
    if rng.random() < 0.05:  # a key that is there twice
        text = text.replace("{", '{"id": 5, ', 1) if rng.random() < 0.5 else text[:-1] + ', "format": 1}'
    return text.encode("utf-8", "surrogatepass")


def _lines(rng: Rng, data: bytes, outside: str) -> bytes:
    """JSON lines, CSV, YAML, lists of names: a line changes, goes or comes twice."""
    lines = data.decode("utf-8", "replace").splitlines() or [""]
    at, what = rng.randrange(len(lines)), rng.randrange(6)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(at, lines[at])
    elif lines[at].startswith("{"):
        lines[at] = _json(rng, lines[at].encode(), outside).decode("utf-8", "surrogatepass")
    else:
        words = lines[at].replace(",", " , ").replace(";", " ; ").split(" ")
        value = nasty(rng, outside)
        words[rng.randrange(len(words))] = value.text if isinstance(value, Raw) else str(value)
        lines[at] = " ".join(words).replace(" , ", ",").replace(" ; ", ";")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


YAML = (
    "!!python/object/apply:os.makedirs [OUT]", "!!python/name:os.system", "!!python/object/new:os.system [id]",
    "&a [*a]", "[" * 5000, "{a: " * 3000, "2001-01-01", "0x10", "1_000", "1:30:00", "!!binary aGk=", "!!set {a, b}",
    "&a {<<: *a}", "- -", "\t", "|", "? a", "*b", "%YAML 9.9", "!!timestamp 9999999-99-99", ".inf", "! x",
)  # fmt: skip
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


def _yaml(rng: Rng, data: bytes, outside: str) -> bytes:
    if rng.random() < 0.5:
        return _lines(rng, data, outside)
    lines = data.decode().splitlines() or [""]
    at = rng.randrange(len(lines))
    key, sign, _ = lines[at].partition(":")
    lines[at] = f"{key}{sign} {rng.choice(YAML).replace('OUT', outside + '/executed')}"
    text = "\n".join(lines)
    if rng.random() < 0.1:
        text = LAUGHS + text.replace(lines[at], f"{key}{sign} *a39")
    return text.encode()


# -- tensors ---------------------------------------------------------------------------------------------------------


def _safetensors(rng: Rng, data: bytes, outside: str) -> bytes:
    """The header lies: of its length, of types, shapes and places."""
    length = int.from_bytes(data[:8], "little")
    body = data[8 + length :]
    if rng.random() < 0.15:
        return struct.pack("<Q", rng.choice((*NUMBERS, length + 1, length - 1))) + data[8:]
    head = json.loads(data[8 : 8 + length])
    key = rng.choice([k for k in head if k != "__metadata__"] or list(head))
    entry, what = head[key], rng.randrange(8)
    start, stop = entry.get("data_offsets", (0, 0))
    if what == 0:
        entry["data_offsets"] = rng.choice(([stop, start], [0, 1 << 62], [-1, 4], [start + 1, stop], [start, stop + 4]))
    elif what == 1:
        entry["shape"] = rng.choice(([1 << 40], [1 << 62, 4], [-1], [0], [], [1] * 70, [1 << 33, 1 << 33]))
    elif what == 2:
        entry["dtype"] = rng.choice(("F64", "I64", "BF16", "BOOL", "F8_E4M3", "X", "", "U8"))
    elif what == 3:
        del head[key]
    elif what == 4:
        head[f"{key}{rng.choice('./ ')}x"] = head.pop(key)
    elif what == 5:
        entry["shape"] = entry.get("shape", [])[::-1]
    else:
        head = change(rng, head, outside)
    text = dumps(head).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def _npy(rng: Rng, data: bytes, outside: str) -> bytes:
    length = int.from_bytes(data[8:10], "little")
    head = data[10 : 10 + length].decode("latin1")
    shape = head[head.index("'shape': ") + 9 : head.index(")") + 1]
    wild = ("(1099511627776, 64)", "(-1, 64)", "(28,)", "()", "(0, 0)", "(28, 0)", "(True, 64)", "(2**40,)", "(1.5, 2)",
            "(" * 200 + ")" * 200, "(9223372036854775807, 9223372036854775807)", "(28, 65)", "('a', 2)")  # fmt: skip
    types = ("'|O'", "'>f4'", "'<f2'", "'<f8'", "'<c16'", "'|V8'", "'<U9'", "[('a', '<f4')]", "'x'", "None")
    if rng.random() < 0.6:
        head = head.replace(shape, rng.choice(wild))
    else:
        head = head.replace("'<f4'", rng.choice(types)) if rng.random() < 0.6 else head.replace("False", "True")
    raw = head.encode("latin1")
    return data[:8] + struct.pack("<H", len(raw)) + raw + data[10 + length :]


def _pt(rng: Rng, data: bytes, outside: str) -> bytes:
    """A torch file: a zip whose members are changed, a pickle that would execute, a bomb."""
    bomb = pickle.dumps({"format": Bomb(f"{outside}/executed")}, protocol=2)
    if rng.random() < 0.1:
        return bomb
    try:
        source = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        return any_bytes(rng, data, ())
    names, out = source.namelist(), io.BytesIO()
    hit, what = rng.choice(names if rng.random() < 0.4 else [n for n in names if n.endswith(".pkl")]), rng.randrange(6)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if what == 0 else zipfile.ZIP_STORED) as target:
        for name in names:
            content = source.read(name)
            if name == hit:
                if what == 0:
                    content = b"\0" * (1 << 27)  # 128 KiB in the file
                elif what == 1:
                    content = bomb
                elif what == 2:
                    continue
                elif what == 3:
                    name = f"../outside/{name}"
                else:
                    content = any_bytes(rng, content, ())
            target.writestr(name, content)
    return out.getvalue()


KINDS: dict[str, Callable[[Rng, bytes, str], bytes]] = {
    "json": _json,
    "jsonl": _lines,
    "csv": _lines,
    "txt": _lines,
    "yaml": _yaml,
    "safetensors": _safetensors,
    "npy": _npy,
    "pt": _pt,
}
