"""What a run of several processes says when one fails, and runs that start together."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ssl_toolkit import training
from ssl_toolkit.errors import Terminated, UserError
from ssl_toolkit.processes.launch import Ending, _raised
from tests.helpers import quick_overrides
from tests.training.killing import command, metrics


class Failure:
    """As `torch.distributed.elastic` reports one."""

    def __init__(self, exitcode: int, timestamp: int = 100) -> None:
        self.exitcode, self.timestamp = exitcode, timestamp

    def signal_name(self) -> str:
        return signal.Signals(-self.exitcode).name


@pytest.mark.parametrize(
    ("endings", "failures", "kind", "message"),
    [
        ([Ending("crash", "lost the other", 101.5), Ending("input", "bad", 101.0)], {1: Failure(2)}, UserError, "bad"),
        ([Ending("interrupt", "stopped", 101)], {0: Failure(130)}, KeyboardInterrupt, "stopped"),
        ([Ending("terminated", "stopped", 101)], {0: Failure(143)}, Terminated, "stopped"),
        ([Ending("crash", "Traceback ...", 101)], {0: Failure(1)}, RuntimeError, "one of 2 processes failed:\nTrace"),
        ([Ending("crash", "lost the other", 101)], {1: Failure(-9)}, RuntimeError, "process 1 of 2 was ended by SIGK"),
        ([Ending("input", "bad", 60)], {0: Failure(2), 1: Failure(-9)}, UserError, "bad"),  # the other one hung
        ([Ending("input", "bad", 100)], {0: Failure(2), 1: Failure(-15)}, UserError, "bad"),
        ([], {1: Failure(3)}, RuntimeError, r"without a word, with status \{1: 3\}"),
    ],
)
def test_what_went_wrong_first_is_raised(
    endings: list[Ending], failures: dict[int, Any], kind: type[BaseException], message: str, tmp_path: Path
) -> None:
    for rank, ending in enumerate(endings):
        ending.write(tmp_path, rank)
    error = _raised(tmp_path, 2, failures)
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error


@pytest.fixture
def sweeps(tmp_path: Path) -> Iterator[Path]:
    """The folder of two sweeps of the same name that run at the same time."""
    options = [*quick_overrides(tmp_path / "runs", "vicreg"), "name=sweep", "trainer.steps=1", "monitor.knn_every=null"]
    argv = ["pretrain", "-m", *options, "method.invariance=10,25"]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(command, argv, tmp_path / f"{number}.csv") for number in range(2)]
        assert [job.result() for job in jobs] == [0, 0]
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path / "runs")


def test_sweeps_never_share_a_folder(sweeps: Path) -> None:
    names = sorted(path.name for path in sweeps.iterdir())
    ten, twenty_five = "sweep-method.invariance-10", "sweep-method.invariance-25"
    assert names == sorted([ten, f"{ten}-2", twenty_five, f"{twenty_five}-2"])
    for name in names:
        run = sweeps / name
        assert training.read_run_config(run).method.invariance == float(name.split("-")[2])
        assert len(metrics(run / "metrics.csv")) == 1
        assert (run / "backbone.safetensors").exists()
