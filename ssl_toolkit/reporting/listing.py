"""What runs there are below a folder, how far each is, and its best numbers."""

from __future__ import annotations

import csv
import datetime
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.compare import MAIN_METRICS
from ssl_toolkit.reporting.runs import RunFolder, name_of

WEIGHTS = "backbone.safetensors"
STYLES = {
    "finished": "green",
    "running": "cyan",
    "stopped": "yellow",
    "begun": "dim",
    "untrained": "dim",
    "unreadable": "red",
}
COLUMNS = ("run", "state", "method", "backbone", "data", "seed", "step", "changed", "results")


@dataclass(frozen=True)
class Listed:
    """A run in a list.

    Attributes:
        path: of its folder.
        state: ``finished``, ``running`` (another process trains it), ``stopped`` (it can be resumed), ``begun`` (there
            is no checkpoint yet), ``untrained`` (a baseline), or ``unreadable``.
        step: last one logged, None where none was.
        changed: seconds since the epoch of the last change of its config, metrics, weights or results.
        numbers: title to percent, the main metrics of its evaluations; where there is none, the best that its probes
            saw on validation images in training.
        problem: why it is unreadable.
    """

    path: Path
    state: str
    method: str = ""
    backbone: str = ""
    data: str = ""
    seed: str = ""
    step: int | None = None
    changed: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    def row(self, root: Path) -> list[str]:
        """Cells in the order of `COLUMNS`, the path relative to ``root``."""
        name = str(self.path.relative_to(root)) if self.path != root else self.path.name
        shown = ", ".join(f"{title} {value:.1f}" for title, value in self.numbers.items())
        when = datetime.datetime.fromtimestamp(self.changed).strftime("%Y-%m-%d %H:%M")
        step = "" if self.step is None else f"{self.step:,}"
        return [name, self.state, self.method, self.backbone, self.data, self.seed, step, when, self.problem or shown]


def list_runs(root: Path) -> list[Listed]:
    """Every run in ``root`` or below it, the one that changed last first.

    Raises:
        UserError: no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}: give the folder that runs are in (runs_dir, runs by default)")
    found = sorted((_listed(path) for path in _run_folders(root)), key=lambda run: (-run.changed, str(run.path)))
    if not found:
        raise UserError(f"{root} holds no runs: start one with ssl-toolkit pretrain")
    return found


def _run_folders(root: Path) -> Iterator[Path]:
    """Folders with a ``config.yaml``; nothing lies inside of a run."""
    if (root / "config.yaml").is_file():
        yield root
        return
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from _run_folders(path)


def _listed(path: Path) -> Listed:
    try:
        run = RunFolder.read(path)
    except UserError as error:
        return Listed(path, "unreadable", changed=_changed(path), problem=str(error))
    steps = run.metrics.get("step", np.empty(0))
    method, backbone, data, seed = (name_of(run.config.get(key)) for key in ("method", "backbone", "data", "seed"))
    step = int(steps[-1]) if len(steps) else None
    return Listed(path, _state(run), method, backbone, data, seed, step, _changed(path), _numbers(run))


def _state(run: RunFolder) -> str:
    if "trainer" not in run.config:
        return "untrained"
    if (run.path / WEIGHTS).is_file():
        return "finished"
    if _in_use(run.path / ".lock"):
        return "running"
    return "stopped" if any((run.path / "checkpoints").glob("*.ckpt")) else "begun"


def _in_use(lock: Path) -> bool:
    """Whether another process holds the lock of a run."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return False
    try:
        with lock.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


def _changed(path: Path) -> float:
    files = [path / "config.yaml", path / "metrics.csv", path / WEIGHTS, *(path / "results").glob("*.json")]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _numbers(run: RunFolder) -> dict[str, float]:
    found = {}
    for (protocol, _), result in run.latest().items():
        value = result.metrics.get(next((m for p, m in MAIN_METRICS if p == protocol), ""))
        if value is not None:
            found[next(title for (p, _), title in MAIN_METRICS.items() if p == protocol)] = value
    if found:
        return found
    probes = {"kNN probe": "knn_top1", "linear probe": "linear_top1"}
    best = {title: run.metrics[column] for title, column in probes.items() if column in run.metrics}
    return {title: float(np.nanmax(values)) for title, values in best.items() if not np.isnan(values).all()}


def runs_table(runs: list[Listed], root: Path) -> Table:
    """A row for each run: what it is, how far it is, what came out."""
    table = Table(title=Text(f"{len(runs)} runs in {root}"), title_justify="left", title_style="dim", show_lines=True)
    for name in ("run", "state", "best"):
        table.add_column(name, overflow="fold", no_wrap=name == "state")
    for run in runs:
        cells = dict(zip(COLUMNS, run.row(root)))
        what = ", ".join(filter(None, (cells["method"], cells["backbone"], cells["data"])))
        seed = f", seed {cells['seed']}" if cells["seed"] else ""
        state = Text(run.state, style=STYLES[run.state])
        state.append(f"\nstep {cells['step']}" if cells["step"] else "", style="default")
        state.append(f"\n{cells['changed']}", style="dim")
        title = Text(cells["run"])
        title.append(f"\n{what}{seed}" if what else "", style="dim")
        table.add_row(title, state, Text(cells["results"].replace(", ", "\n") if run.numbers else run.problem))
    return table


def runs_csv(runs: list[Listed], root: Path) -> str:
    """The same as CSV, with a column for each number."""
    titles = list(dict.fromkeys(title for run in runs for title in run.numbers))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS[:-1], *titles])
    for run in runs:
        numbers = [run.numbers.get(title, math.nan) for title in titles]
        writer.writerow([*run.row(root)[:-1], *("" if math.isnan(n) else f"{n:.4f}" for n in numbers)])
    return text.getvalue()
