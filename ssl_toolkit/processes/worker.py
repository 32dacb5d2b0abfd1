"""One process of a run on several devices: ``python -m ssl_toolkit.processes.worker TASK RUN FOLDER quiet``.

`ssl_toolkit.processes.launch` starts it; nobody calls it by hand.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_toolkit.errors import Terminated, UserError
from ssl_toolkit.processes.launch import Ending


def _end_with(parent: int) -> None:
    """End when the process that started this one is gone: killed, it cannot end the others."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(task: str, run: Path, folder: Path, quiet: bool) -> None:
    from omegaconf import OmegaConf
    from rich.console import Console

    from ssl_toolkit.processes.world import leave

    module, function = task.split(":")
    config: Any = OmegaConf.load(folder / "config.yaml")
    getattr(importlib.import_module(module), function)(run, config, Console(quiet=quiet))
    leave()


def main(arguments: Sequence[str]) -> int:
    """Do ``TASK`` (``module:function``) on the folder ``RUN``; what ends it early is written to ``FOLDER``."""
    task, run, folder, voice = arguments
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    rank = int(os.environ["RANK"])
    if rank > 0:
        warnings.simplefilter("ignore")
    try:
        _work(task, Path(run), Path(folder), quiet=rank > 0 or voice == "quiet")
        return 0
    except UserError as error:
        ending, status = Ending("input", str(error), time.time()), 2
    except Terminated as error:
        ending, status = Ending("terminated", str(error), time.time()), 143
    except KeyboardInterrupt as error:
        ending, status = Ending("interrupt", str(error), time.time()), 130
    except BaseException:
        ending, status = Ending("crash", traceback.format_exc(), time.time()), 1
    ending.write(Path(folder), rank)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # NCCL could wait for the others for ever


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
