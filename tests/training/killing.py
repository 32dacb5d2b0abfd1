"""Runs of the command line in processes of their own, which are killed where a test says.

Processes come from a server that has imported everything once, so that a run takes seconds; each is a process like any
other, and dies by SIGKILL.
"""

from __future__ import annotations

import csv
import faulthandler
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

import ssl_toolkit.commands
from ssl_toolkit.cli import main
from ssl_toolkit.training import saving
from ssl_toolkit.training.callbacks.metrics import TIMINGS
from ssl_toolkit.training.checkpoints import OURS, checkpoint_path, read_checkpoint
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.training.saving import Checkpoints
from ssl_toolkit.views.batch import ViewBatch

PLACES = ("forward", "update", "batch end", "saving", "naming")


class Kill(NamedTuple):
    """Where a process kills itself.

    Attributes:
        step: counted from 1.
        place: ``forward`` after the forward pass, ``update`` in the optimizer's turn, ``batch end`` before a checkpoint
            could be written, ``saving`` in the middle of writing one (of this step or later), ``naming`` between
            ``last`` and its other names, ``finish`` when all is trained. Other ends, after the forward pass: ``error``
            raises one, ``terminate`` sends SIGTERM to the process and its workers, ``interrupt`` SIGINT.
    """

    step: int
    place: str

    @property
    def status(self) -> int:
        """Of the process."""
        return {"error": 1, "terminate": 143, "interrupt": 130}.get(self.place, -signal.SIGKILL)


def die() -> None:
    """As ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """As where memory runs out."""
    raise RuntimeError("as planned")


def _before(owner: Any, name: str, action: Callable[..., None]) -> None:
    """Have ``action`` called with the arguments of ``owner.name`` before it."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        action(*args)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _record(log: Path) -> None:
    """Write down which images each step gets, and a sum of their pixels."""

    def note(module: Pretraining, batch: ViewBatch, *_: Any) -> None:
        pixels = [int(view.image.to(torch.float64).sum()) for view in batch.views]
        line = f"{module.position() + 1},{batch.index.tolist()},{pixels}\n".replace(", ", " ")
        with log.open("a") as file:
            file.write(line)

    _before(Pretraining, "training_step", note)


def _plan(kill: Kill) -> None:
    """Arrange for the death of this process."""

    def at(step: int, end: Callable[[], None] = die) -> None:
        if step >= kill.step:
            end()

    def half(checkpoint: dict[str, Any], file: Any) -> None:
        if checkpoint["global_step"] >= kill.step:
            file.write(os.urandom(5000))
            file.flush()
            die()

    ends: dict[str, Callable[[], None]] = {
        "forward": die,
        "error": fail,
        "terminate": lambda: os.killpg(0, signal.SIGTERM),
        "interrupt": lambda: os.killpg(0, signal.SIGINT),
    }
    if kill.place in ends:
        original = Pretraining.training_step

        def forward(self: Pretraining, *args: Any) -> Any:
            result = original(self, *args)
            at(self.position() + 1, ends[kill.place])
            return result

        Pretraining.training_step = forward  # type: ignore[method-assign]
    elif kill.place == "update":
        _before(Pretraining, "on_before_optimizer_step", lambda module, *_: at(module.position() + 1))
    elif kill.place == "batch end":
        _before(Checkpoints, "on_train_batch_end", lambda _, trainer, *__: at(trainer.global_step))
    elif kill.place == "saving":
        _before(torch, "save", half)
    elif kill.place == "naming":
        _before(saving, "give_names", lambda run, names: at((names and kill.step) or 0))
    elif kill.place == "finish":
        _before(importlib.import_module("ssl_toolkit.training.pretrain"), "save_backbone", lambda *_: die())
    else:
        raise ValueError(kill.place)


def _child(argv: list[str], log: Path, kill: Kill | None, timeout: float) -> None:
    output = os.open(log.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.dump_traceback_later(timeout - 10)  # where it hangs, if it does
    multiprocessing.set_start_method(None, force=True)  # as in a command: the server's own would start the workers
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever runs the tests ignores it
    torch.set_num_threads(1)
    ssl_toolkit.commands.write_report = lambda run: run  # takes longer than the training
    _record(log)
    if kill is not None:
        _plan(kill)
    os._exit(main(argv))


def command(argv: list[str], log: Path, kill: Kill | None = None, timeout: float = 600) -> int:
    """Status of ``ssl-toolkit`` with ``argv`` in a process of its own; -9 where it was killed.

    Args:
        log: gets a line for each step; what is printed goes beside it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_child, args=(argv, log, kill, timeout))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError(log.with_suffix(".txt").read_text())
    assert process.exitcode is not None
    return process.exitcode


def batches(log: Path) -> dict[str, set[str]]:
    """What each step got, whenever it was trained: one entry where all times agree."""
    found: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        step, _, batch = line.partition(",")
        found.setdefault(step, set()).add(batch)
    return found


def metrics(path: Path) -> list[dict[str, str]]:
    """Rows without the timings."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """Where two nested structures of tensors and plain values differ in a single bit; None where they do not."""
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy())
        return None if same else where
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"
        return next(filter(None, (difference(a[k], b[k], f"{where}.{k}") for k in a)), None)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return where
        return next(filter(None, (difference(x, y, f"{where}.{i}") for i, (x, y) in enumerate(zip(a, b)))), None)
    return None if a == b or (a != a and b != b) else f"{where}: {a} {b}"


def checkpoints_differ(a: Path, b: Path) -> str | None:
    """`difference` of two checkpoint files but for what names the run."""
    contents = [read_checkpoint(path) for path in (a, b)]
    for content in contents:
        for key in ("name", "runs_dir", "run"):
            content[OURS]["config"].pop(key, None)
    return difference(*contents)


def runs_differ(a: Path, b: Path) -> str | None:
    """What two finished runs differ in: checkpoints, exported weights, metrics; None where in nothing."""
    names = [sorted(path.stem for path in (run / "checkpoints").iterdir()) for run in (a, b)]
    if names[0] != names[1]:
        return f"checkpoints {names}"
    for name in sorted(names[0], key=lambda name: (name != "last", name)):  # what "best" is follows from the rest
        found = checkpoints_differ(checkpoint_path(a, name), checkpoint_path(b, name))
        if found:
            return f"{name}: {found}"
    weights = difference(*(load_file(run / "backbone.safetensors") for run in (a, b)))
    if weights:
        return f"backbone {weights}"
    return difference(*(metrics(run / "metrics.csv") for run in (a, b)), "metrics")
