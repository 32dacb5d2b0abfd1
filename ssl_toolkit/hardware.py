"""Which device to run on and in which precision, and why."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from ssl_toolkit.errors import UserError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "bf16", "fp32")


def check_device_name(name: str) -> tuple[str, str]:
    """Kind and number (empty for none) of a config value, see `pick_device`.

    Raises:
        UserError: an unknown name.
    """
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and (kind != "cuda" or not number.isdigit())):
        raise unknown("device", name, DEVICES)
    return kind, number


def pick_device(name: str) -> torch.device:
    """The device of a config value.

    Args:
        name: ``auto`` (a CUDA GPU if there is one, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        UserError: an unknown name, or a device that this machine does not have.
    """
    kind, number = check_device_name(name)
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: torch sees no CUDA GPU; use device=auto or device=cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise UserError(f"device {name}: torch sees {torch.cuda.device_count()} CUDA GPUs, counted from 0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: there is no Apple GPU; use device=auto or device=cpu")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype to run autocast in, ``torch.float32`` for none.

    Args:
        name: ``bf16``, ``fp32`` or ``auto``, which takes bf16 where ``device`` has instructions for it.

    Raises:
        UserError: an unknown name.
    """
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if name == "auto":
        return torch.bfloat16 if _bf16_support(device) else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def describe_hardware(device: torch.device, dtype: torch.dtype) -> str:
    """One line for a person: ``"cpu (AMD EPYC, 2 threads), bf16: the CPU has AVX512-BF16"``."""
    support = _bf16_support(device)
    if device.type == "cuda":
        where = f"{device} ({torch.cuda.get_device_name(device)})"
    elif device.type == "cpu":
        where = f"cpu ({_cpu_name()}, {torch.get_num_threads()} threads)"
    else:
        where = str(device)
    if dtype == torch.bfloat16:
        return f"{where}, bf16: {support or 'asked for, though it has no fast bf16 and may be slower'}"
    return f"{where}, fp32{': asked for' if support else ': it has no fast bf16'}"


def _bf16_support(device: torch.device) -> str:
    """What makes bf16 fast on ``device``; empty where nothing does."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return "the GPU computes in bf16" if fast else ""
    if device.type == "cpu":
        flags = _cpu_flags()
        if "amx_bf16" in flags:
            return "the CPU has AMX-BF16"
        if "avx512_bf16" in flags:
            return "the CPU has AVX512-BF16"
    return ""


def _cpu_flags() -> set[str]:
    """Instruction sets of the CPU, by the kernel's names; from torch where there is no /proc/cpuinfo."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return {name for name, value in capabilities.items() if value is True}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
