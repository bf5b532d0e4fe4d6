"""TFRecord files without TensorFlow: framing with its checksums, and the tf.train.Example messages inside.

A record is: length (uint64), masked CRC-32C of it, the data, masked CRC-32C of the data; all little-endian. An Example
is a map of names to lists of bytes, float32 or int64 in protocol-buffer wire format.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
_LANE = 256  # bytes that one lane of the checksum reads
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


class RecordError(ValueError):
    """A record can't be read; `.resumes` says whether the records behind it still can."""

    def __init__(self, reason: str, resumes: bool = False) -> None:
        super().__init__(reason)
        self.resumes = resumes


@dataclass(frozen=True)
class Record:
    """One record of a file: its number, its place in bytes, and its data, or why there is none."""

    number: int
    offset: int
    data: bytes | None
    fault: RecordError | None = None


# -- checksum -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[np.uint32], list[list[int]]]:
    """The step of one byte, and what `_LANE` zero bytes make of each byte of the register."""
    step = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        step = np.where(step & 1, (step >> 1) ^ np.uint32(0x82F63B78), step >> 1).astype(np.uint32)
    register = np.concatenate([np.arange(256, dtype=np.uint32) << np.uint32(8 * k) for k in range(4)])
    for _ in range(_LANE):
        register = step[register & 0xFF] ^ (register >> np.uint32(8))
    return step, register.reshape(4, 256).tolist()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli). Lanes of 256 bytes run side by side; the register is linear, so they are then joined."""
    step, jump = _tables()
    lanes = len(data) // _LANE
    register = 0xFFFFFFFF
    if lanes:
        columns = np.ascontiguousarray(np.frombuffer(data, np.uint8, lanes * _LANE).reshape(lanes, _LANE).T)
        parts = np.zeros(lanes, np.uint32)
        for column in columns:
            parts = step[(parts ^ column) & 0xFF] ^ (parts >> np.uint32(8))
        a, b, c, d = jump
        for part in parts.tolist():
            register = part ^ a[register & 255] ^ b[register >> 8 & 255] ^ c[register >> 16 & 255] ^ d[register >> 24]
    table = step.tolist()
    for byte in data[lanes * _LANE :]:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """The checksum as it stands in a file: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# -- framing --------------------------------------------------------------------------------------------------------


def read_records(path: Path) -> Iterator[Record]:
    """Every record in order. Damaged data is told in `fault` and the next record follows; after a damaged length or a
    cut-off file nothing follows."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        number = offset = 0
        while offset < size:
            try:
                data = _read_one(file, offset, size)
            except RecordError as fault:
                yield Record(number, offset, None, fault)
                if not fault.resumes:
                    return
            else:
                yield Record(number, offset, data)
            offset, number = file.tell(), number + 1


def read_record_at(path: Path, offset: int) -> bytes:
    """The data of the record that starts at byte `offset`, checked."""
    with open(path, "rb") as file:
        return _read_one(file, offset, path.stat().st_size)


def _read_one(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    head = file.read(12)
    if len(head) < 12:
        raise RecordError(f"the file ends within the record at byte {offset}")
    length, crc = struct.unpack("<QI", head)
    if masked_crc(head[:8]) != crc:
        raise RecordError(f"the length of the record at byte {offset} fails its checksum; what follows is lost")
    if offset + 12 + length + 4 > size:
        raise RecordError(f"the file ends within the record at byte {offset} ({size - offset} of {length + 16} bytes)")
    data = file.read(length)
    (crc,) = struct.unpack("<I", file.read(4))
    if masked_crc(data) != crc:
        raise RecordError(f"the record at byte {offset} fails its checksum", resumes=True)
    return data


def write_record(data: bytes) -> bytes:
    """The framed bytes of one record."""
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", masked_crc(data))


# -- messages -------------------------------------------------------------------------------------------------------


def parse_example(data: bytes) -> dict[str, Feature]:
    """tf.train.Example -> {name: list of bytes, or float32 or int64 array (n,)}; RecordError where it is malformed."""
    out: dict[str, Feature] = {}
    try:
        for entry in _messages(memoryview(data), 1):
            for pair in _messages(entry, 1):
                fields = dict(_fields(pair))
                if not isinstance(fields.get(1), memoryview):
                    raise RecordError("an Example holds a feature without a name", resumes=True)
                out[bytes(fields[1]).decode()] = _feature(fields.get(2, memoryview(b"")))
    except (UnicodeDecodeError, struct.error, TypeError) as error:
        raise RecordError(f"an Example is malformed ({error})", resumes=True) from error
    return out


def _messages(data: memoryview, field: int) -> Iterator[memoryview]:
    for number, value in _fields(data):
        if number == field:
            if not isinstance(value, memoryview):
                raise RecordError("an Example holds a number where a message is expected", resumes=True)
            yield value


def _feature(data: memoryview) -> Feature:
    for kind, content in _fields(data):
        values = [value for number, value in _fields(content) if number == 1]
        if kind == 1:
            return [bytes(value) for value in values]
        if kind == 2:  # packed, or one by one
            return np.frombuffer(b"".join(bytes(v) for v in values), "<f4").astype(np.float32)
        if kind == 3:
            numbers = [n for v in values for n in (_varints(v) if isinstance(v, memoryview) else [v])]
            return np.array(numbers, np.uint64).astype(np.int64)
    return []


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value): an int for a varint, the bytes for every other wire type."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise RecordError(f"an Example holds an unknown wire type {kind}", resumes=True)
        if at + length > len(data):
            raise RecordError("an Example ends within a field", resumes=True)
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise RecordError("an Example ends within a number", resumes=True)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise RecordError("an Example holds a number longer than 64 bits", resumes=True)


def _varints(data: memoryview) -> list[int]:
    out, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        out.append(value)
    return out
