"""Every test makes its data in a cache of its own, so that none depends on what this machine has, and computes with one
thread: where more threads than cores wait for each other, a step can take thirty times as long."""

from __future__ import annotations

import getpass
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """One cache for all tests of a session, before any module reads the variable."""
    cache = Path(tempfile.gettempdir()) / f"ssl-toolkit-tests-{getpass.getuser()}"
    os.environ.setdefault("SSL_TOOLKIT_CACHE", str(cache))
    os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so in jobs that a shell runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take minutes begin first, so that no worker waits for one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def _shared_state() -> dict[str, object]:
    """What all tests of a process compute with."""
    return {
        "torch threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"],
        "default dtype": torch.get_default_dtype(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "denormal numbers": bool(torch.full((64,), 1e-40).mul(2).ne(0).all()),
        "folder": Path.cwd(),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
    }


@pytest.fixture(autouse=True)
def state_is_left_as_it_was() -> Iterator[None]:
    """A test that changes what others compute with is the one that fails, not they."""
    before = _shared_state()
    yield
    after = _shared_state()
    assert after == before, {key: (before[key], after[key]) for key in before if before[key] != after[key]}
