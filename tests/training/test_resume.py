"""A run that is killed, wherever, and resumed ends as one that never stopped: the same batches, and every weight,
moment, rate and metric to the bit."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from ssl_toolkit.config import override_of
from ssl_toolkit.training.checkpoints import checkpoint_names
from tests.helpers import needs_dali, quick_overrides
from tests.training.killing import PLACES, Kill, batches, command, runs_differ

# 4 steps an epoch, a checkpoint every 3: inside epochs, at the end of the third, and where one epoch's end has none.
HARD = [
    "backbone=timm",
    "backbone.name=test_convnext",
    "backbone.drop_path=0.5",  # random numbers in every step
    "trainer.accumulate=2",
    "trainer.clip_norm=1.0",
    "trainer.checkpoint_every=3",
    "trainer.keep_every=2",
    "trainer.log_every=1",
    "trainer.epochs=3",
    "monitor.knn_images=32",
]


def options(runs: Path, name: str, *more: str) -> list[str]:
    return [*quick_overrides(runs, "vicreg"), *HARD, f"name={name}", *more]


def killed_run(folder: Path, kills: list[Kill], *more: str) -> str | None:
    """What a run that dies at ``kills``, one after the other, differs in from one that does not."""
    whole, torn = folder / "whole.log", folder / "torn.log"
    if not whole.exists():
        status = command(["pretrain", *options(folder, "whole", *more)], whole)
        assert status == 0, whole.with_suffix(".txt").read_text()
    argv = ["pretrain", *options(folder, "torn", *more)]
    for kill in kills:
        status = command(argv, torn, kill)
        assert status == kill.status, (kill, torn.with_suffix(".txt").read_text())
        argv = ["pretrain", override_of("run", folder / "torn")]
    assert command(argv, torn) == 0, torn.with_suffix(".txt").read_text()
    assert batches(torn) == batches(whole)
    assert all(len(seen) == 1 for seen in batches(torn).values())
    assert not [path for path in (folder / "torn").rglob(".*") if path.name != ".lock"]
    return runs_differ(folder / "whole", folder / "torn")


def test_killed_again_and_again(tmp_path: Path) -> None:
    kills = [
        Kill(2, "forward"),  # before there is any checkpoint
        Kill(3, "saving"),  # half of the first one
        Kill(4, "batch end"),  # an epoch's end without one
        Kill(6, "update"),
        Kill(8, "naming"),  # last is written, epoch-0002 is not
        Kill(12, "finish"),
    ]
    assert killed_run(tmp_path, kills) is None
    assert checkpoint_names(tmp_path / "torn") == ["last", "best", "epoch-0002"]


def test_stopped_by_signals_and_errors(tmp_path: Path) -> None:
    """All leave a checkpoint of the step before or after, workers notwithstanding."""
    more = ["trainer.workers=1", "trainer.checkpoint_every=null", "backbone=tiny_resnet", "trainer.accumulate=1"]
    kills = [Kill(2, "error"), Kill(5, "terminate"), Kill(8, "interrupt"), Kill(10, "error")]
    assert killed_run(tmp_path, kills, *more) is None
    said = " ".join((tmp_path / "torn.txt").read_text().split())
    resume = f"continue with: ssl-toolkit pretrain run={tmp_path / 'torn'}"
    for line in (
        "checkpoint of step 1 written",
        "stopped at step 5",
        "stopped at step 8",
        "checkpoint of step 9 written",
    ):
        assert f"{line}; {resume}" in said


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("engine", ["torch", pytest.param("dali", marks=needs_dali)])
@pytest.mark.parametrize("every", ["3", "null"])
def test_killed_at_random(engine: str, workers: int, every: str, tmp_path: Path) -> None:
    drawn = random.Random(f"{engine} {workers} {every}")
    kills = [Kill(step, drawn.choice(PLACES)) for step in sorted(drawn.sample(range(1, 12), 5))]
    more = [f"views.engine={engine}", f"trainer.workers={workers}", f"trainer.checkpoint_every={every}"]
    assert killed_run(tmp_path, kills, *more) is None, kills


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vicregl", "simclr_l"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_methods_and_optimizers(method: str, optimizer: str, tmp_path: Path) -> None:
    more = ["backbone=tiny_resnet", f"experiment=digits_{method}", f"optimizer={optimizer}", "trainer.steps=9"]
    more += ["~optimizer.trust_coefficient"]
    assert killed_run(tmp_path, [Kill(2, "update"), Kill(7, "forward")], *more) is None


@pytest.mark.slow
def test_killed_from_outside_at_any_instant(tmp_path: Path) -> None:
    """SIGKILL by another process, at moments that nobody chose."""
    drawn = random.Random(5)
    whole, log = tmp_path / "whole.log", tmp_path / "torn.log"
    more = ["trainer.epochs=30", "trainer.workers=2", "trainer.checkpoint_every=2", "trainer.keep_every=null"]
    assert command(["pretrain", *options(tmp_path, "whole", *more)], whole) == 0
    argv, steps = ["pretrain", *options(tmp_path, "torn", *more)], 0
    for _ in range(4):
        steps += drawn.randrange(3, 25)
        pid, before = os.fork(), time.monotonic()
        if pid == 0:
            out = os.open(os.devnull, os.O_WRONLY)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.execv(sys.executable, [sys.executable, "-c", RECORDED.format(log=log), *argv])
        while trained(log) < steps and time.monotonic() < before + 300:
            time.sleep(drawn.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        if (tmp_path / "torn").exists():
            argv = ["pretrain", override_of("run", tmp_path / "torn")]
    assert command(argv, log) == 0, log.with_suffix(".txt").read_text()
    assert batches(log) == batches(whole)
    assert runs_differ(tmp_path / "whole", tmp_path / "torn") is None


RECORDED = (
    "import sys; from pathlib import Path; from tests.training import killing; killing._record(Path('{log}'));"
    "import torch; torch.set_num_threads(1); sys.exit(killing.main(sys.argv[1:]))"
)


def trained(log: Path) -> int:
    """The furthest step begun."""
    lines = log.read_text().splitlines() if log.exists() else []
    return max((int(line.split(",")[0]) for line in lines), default=0)
