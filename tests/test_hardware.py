"""The choice of device and precision, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from ssl_toolkit import hardware
from ssl_toolkit.errors import UserError
from ssl_toolkit.hardware import describe_hardware, pick_device, pick_precision

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="torch sees 2 CUDA GPUs"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device {name}: .*device=auto or device=cpu"):
        pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "cpus", "cuda:x", "cpu:0", ""])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(UserError, match="unknown device"):
        pick_device(name)


@pytest.mark.parametrize(
    ("flags", "dtype", "words"),
    [
        ({"avx512_bf16"}, torch.bfloat16, "bf16: the CPU has AVX512-BF16"),
        ({"amx_bf16", "avx512_bf16"}, torch.bfloat16, "bf16: the CPU has AMX-BF16"),
        ({"avx2"}, torch.float32, "fp32: it has no fast bf16"),
    ],
)
def test_auto_precision_follows_the_instructions_of_the_cpu(
    flags: set[str], dtype: torch.dtype, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: flags)
    assert pick_precision("auto", CPU) == dtype
    line = describe_hardware(CPU, dtype)
    assert line.endswith(words)
    assert "\n" not in line


def test_precision_that_is_asked_for_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: {"avx512_bf16"})
    assert pick_precision("fp32", CPU) == torch.float32
    assert describe_hardware(CPU, torch.float32).endswith("fp32: asked for")
    monkeypatch.setattr(hardware, "_cpu_flags", set)
    assert pick_precision("bf16", CPU) == torch.bfloat16
    assert "may be slower" in describe_hardware(CPU, torch.bfloat16)
    with pytest.raises(UserError, match="unknown precision 'fp16'"):
        pick_precision("fp16", CPU)


def test_flags_are_read_from_somewhere() -> None:
    assert hardware._cpu_flags() or hardware._cpu_name()
