"""Starting processes on this machine, by the engine of torchrun."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from ssl_toolkit.errors import Terminated, UserError
from ssl_toolkit.files import write_json, write_text

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
SHUTDOWN_SECONDS = 300
"""For a checkpoint to be written after Ctrl+C, before processes are killed; torch before 2.12 waits 30."""


class Ending(NamedTuple):
    """Why a process ended early.

    Attributes:
        kind: ``input`` for a `UserError`, ``interrupt``, ``terminated``, or ``crash`` with its traceback.
        time: seconds since the epoch.
    """

    kind: str
    message: str
    time: float

    def write(self, folder: Path, rank: int) -> None:
        """Leave it for `launch`."""
        write_json(folder / f"ending-{rank}.json", self._asdict())


def launch(count: int, task: str, run: Path, config: DictConfig, *, quiet: bool = False) -> None:
    """Run ``task`` in ``count`` processes, and wait until they are done.

    Each is ``python -m ssl_toolkit.processes.worker``, which `torchrun` could as well have started. When one ends early
    all do, and what it says is raised here.

    Args:
        task: ``"module:function"``, called as ``function(run, config, console)`` in each process.
        run: the folder that the task works in.
        config: of the task, as it is to be used; it may differ from the one in the folder.
        quiet: print nothing.

    Raises:
        UserError: raised in a process.
        KeyboardInterrupt: the run was interrupted; says where it stopped.
        RuntimeError: a process failed or was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    with tempfile.TemporaryDirectory(prefix="ssl-toolkit-") as name, _own_signals(), _quiet_elastic():
        folder = Path(name)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        safe = ("-P",) if sys.version_info >= (3, 11) else ()  # modules of the working directory are none of ours
        worker = ("-u", *safe, "-m", "ssl_toolkit.processes.worker")
        try:
            elastic_launch(_elastic_config(count, folder), sys.executable)(
                *worker, task, str(run), str(folder), "quiet" if quiet else "loud"
            )
        except ChildFailedError as error:
            raise _raised(folder, count, error.failures) from None
        except SignalException as stopped:
            told = _first_ending(folder)
            kind = Terminated if stopped.sigval == signal.SIGTERM else KeyboardInterrupt
            raise kind(told.message if told and told.kind in ("interrupt", "terminated") else "") from None


def _elastic_config(count: int, folder: Path) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    options: dict[str, Any] = {}
    if "shutdown_timeout" in {field.name for field in dataclasses.fields(LaunchConfig)}:
        options["shutdown_timeout"] = SHUTDOWN_SECONDS
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        **options,
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back the signal handlers that torch's launcher replaces."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_elastic() -> Iterator[None]:
    """Without torch's log of what it starts and ends: `launch` raises what a person needs to know."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _first_ending(folder: Path) -> Ending | None:
    endings = [Ending(**json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("ending-*.json")]
    return min(endings, key=lambda ending: ending.time, default=None)


def _raised(folder: Path, count: int, failures: Mapping[int, Any]) -> BaseException:
    """The exception for what went wrong first: the others only lost a process to talk to."""
    told = _first_ending(folder)
    killed = {
        failure.timestamp: f"process {rank} of {count} was ended by {failure.signal_name()}"
        for rank, failure in failures.items()
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM  # which is how the others are ended
    }
    # One that hangs is killed too, but long after the one that failed has said why.
    if killed and (told is None or min(killed) < told.time + 5):
        return RuntimeError(f"{killed[min(killed)]}; SIGKILL often means that memory ran out")
    if told is None:
        codes = {rank: failure.exitcode for rank, failure in failures.items()}
        return RuntimeError(f"processes ended without a word, with status {codes}")
    kinds: dict[str, type[BaseException]] = {
        "input": UserError,
        "interrupt": KeyboardInterrupt,
        "terminated": Terminated,
    }
    if told.kind in kinds:
        return kinds[told.kind](told.message)
    return RuntimeError(f"one of {count} processes failed:\n{told.message}")
