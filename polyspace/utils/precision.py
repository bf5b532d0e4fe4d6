"""Whether bf16 pays on a device."""

import platform

import torch

from polyspace.utils.log import warn

_X86_BF16 = {"avx512_bf16", "amx_bf16", "avx10_2"}


def has_bf16(device: torch.device) -> bool:
    """Whether products in bf16 have instructions of their own there; elsewhere they are emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # absent in older torch
    if platform.machine() in ("x86_64", "AMD64") and known:
        return any(known.get(name, False) for name in _X86_BF16)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def note_precision(precision: str, device: torch.device) -> None:
    """A warning where bf16 was asked for and is emulated."""
    if precision == "bf16" and not has_bf16(device):
        warn(
            f"--precision bf16: this {device.type} device has no bf16 instructions; on the one CPU "
            "measured that lacks them, forwards took 2.4 times as long as in fp32"
        )
