"""One run of a study: ``python -m ssl_toolkit.reproduction.worker FOLDER``.

`ssl_toolkit.reproduction.jobs` starts it, with what is to be done in the folder; nobody calls it by hand.
"""

from __future__ import annotations

import resource
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
from ssl_toolkit.reproduction.jobs import DONE, PLAN


def _work(folder: Path, console: Console) -> None:
    plan = read_json(folder / PLAN)
    config: Any = OmegaConf.create(plan["config"])
    training.carry_on(folder, config, console)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    for protocols, overrides in plan["evaluations"]:
        evaluate(protocols, [override_of("run", folder), *overrides], console)
    write_json(folder / DONE, {"evaluated_by": plan["evaluated_by"], "memory_gib": round(memory, 3)})


def main(arguments: Sequence[str]) -> int:
    """Train or go on training the run in FOLDER, evaluate it, and say in ``reproduce.json`` that it is done.

    What ends it early is the last line it prints.
    """
    (folder,) = arguments
    try:
        _work(Path(folder), Console(width=120))
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"stopped: {stopped}", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
