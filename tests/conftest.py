"""Every test makes its data in a cache of its own, so that none depends on what this machine has, and computes with one
thread: where more threads than cores wait for each other, a step can take thirty times as long."""

from __future__ import annotations

import getpass
import os
import signal
import tempfile
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
