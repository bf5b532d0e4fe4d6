"""A device without bf16 instructions is told apart, and said once."""

import pytest
import torch

from polyspace.utils import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx2": True}, False), ({"avx512_f": True, "avx512_bf16": False}, False), ({"amx_bf16": True}, True)],
)
def test_a_processor_is_asked_for_its_own_instructions(monkeypatch, flags, expected):
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert precision.has_bf16(CPU) is expected


@pytest.mark.parametrize(("asked", "has", "said"), [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)])
def test_only_emulated_bf16_is_warned_of(monkeypatch, capsys, asked, has, said):
    monkeypatch.setattr(precision, "has_bf16", lambda device: has)
    precision.note_precision(asked, CPU)
    assert capsys.readouterr().err.count("no bf16 instructions") == said
