"""One run of a study: ``python -m ssl_toolkit.reproduction.worker FOLDER``.

`ssl_toolkit.reproduction.jobs` starts it, with what is to be done in the folder; nobody calls it by hand.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.config import override_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.eval_commands import evaluate
from ssl_toolkit.files import read_json, write_json
from ssl_toolkit.processes.world import current_world, leave
from ssl_toolkit.reporting.report import write_report
from ssl_toolkit.reproduction.jobs import DONE, MEMORY, PLAN
from ssl_toolkit.training.run import WEIGHTS


def work(folder: Path, console: Console) -> None:
    """Train or go on training the run in ``folder``, evaluate it, write its report, and say in ``reproduce.json`` that
    it is done; in this process, or together with the others of a SLURM job.

    Raises:
        UserError: something is wrong with the run.
        KeyboardInterrupt: stopped; the same goes on.
    """
    plan = read_json(folder / PLAN)
    first = current_world().first
    config: Any = OmegaConf.create(plan["config"])
    untrained = not (folder / WEIGHTS).exists()
    training.carry_on(folder, config, console)
    leave()
    if first and untrained:
        write_json(folder / MEMORY, {"peak_gib": _peak_gib()})
    for protocols, overrides in plan["evaluations"]:
        _meet_elsewhere()
        evaluate(protocols, [override_of("run", folder), *overrides], console)
    if first:
        write_report(folder)
        write_json(folder / DONE, {"evaluated_by": plan["evaluated_by"]})


def _peak_gib() -> float:
    """Peak resident memory of this process; nan on Windows."""
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)


def _meet_elsewhere() -> None:
    """Processes that have left each other meet at another port: one that is early would find the old one, closing."""
    if "MASTER_PORT" in os.environ:
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)


def work_as_job(folder: Path) -> None:
    """`work` in each process of a SLURM job; see `ssl_toolkit.reproduction.cluster`."""
    work(folder, Console(width=120, quiet=not current_world().first))


def main(arguments: Sequence[str]) -> int:
    """`work` on FOLDER. What ends it early is the last line it prints."""
    (folder,) = arguments
    try:
        work(Path(folder), Console(width=120))
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"stopped: {stopped}", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
