"""The memory a call needs above what was in use when it began."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def extra_peak(device: torch.device, call: Callable[[], T]) -> tuple[T, int | None]:
    """Run ``call`` and measure the peak of its memory above that at entry, results that it returns included.

    Returns:
        Its result and bytes: of the CUDA allocator on a GPU; of resident memory on a Linux CPU, to some hundred
        kilobytes; None elsewhere, and where the kernel does not let a process reset its peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not _reset_peak():
        return call(), None
    resident = _kilobytes("VmRSS")
    result = call()
    return result, 1024 * max(0, _kilobytes("VmHWM") - resident)


def _reset_peak() -> bool:
    """Set the peak of resident memory to what is resident now; False where that cannot be done."""
    if not sys.platform.startswith("linux"):
        return False
    # Freed memory that the allocator keeps would be taken again without the peak rising.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _kilobytes(key: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no {key}")
