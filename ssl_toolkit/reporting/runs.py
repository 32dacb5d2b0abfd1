"""Reading run folders: everything a report needs comes from files, nothing from the code that wrote them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from ssl_toolkit.errors import UserError, nearest
from ssl_toolkit.files import read_json

Column = NDArray[np.float64]
"""``(rows,)`` float64, nan where the cell was empty."""


def name_of(value: Any) -> str:
    """``value["name"]`` of a config group, or the value itself; empty for None."""
    if isinstance(value, Mapping):
        value = value.get("name")
    return "" if value is None else str(value)


@dataclass(frozen=True)
class Result:
    """One evaluation, as written to ``results/*.json``.

    Attributes:
        protocol: its name, with the variant in brackets where there is one (``linear (10pct)``).
        metrics: name to percent.
        selected: the hyper-parameters that were chosen (``{"lr": 0.1}``, ``{"k": 20}``).
        grid: every setting that was tried, one mapping each; may be empty.
        created: when it was written, as text that sorts by time.
    """

    path: Path
    protocol: str
    data: str
    metrics: dict[str, float]
    selected: dict[str, Any] = field(default_factory=dict)
    grid: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    backbone: str = ""
    checkpoint: str = ""
    data_fingerprint: str = ""
    seconds: float = math.nan
    created: str = ""


@dataclass(frozen=True, eq=False)
class RunFolder:
    """What one run left behind.

    Attributes:
        label: the folder's name, for tables and legends.
        config: the resolved config as plain containers.
        config_text: the same as it stands in ``config.yaml``.
        metrics: columns of ``metrics.csv``, all of one length; empty for an untrained baseline.
        results: evaluations, sorted by file name.
        environment: versions and hardware, as text.
    """

    path: Path
    label: str
    config: dict[str, Any]
    config_text: str
    metrics: dict[str, Column]
    results: list[Result]
    environment: dict[str, str]

    @classmethod
    def read(cls, path: Path | str) -> RunFolder:
        """The run in folder ``path``. Only ``config.yaml`` must be there.

        Raises:
            UserError: no such folder, not a run folder, or a file in it that cannot be read.
        """
        path = Path(path)
        config_path = path / "config.yaml"
        if not path.is_dir():
            raise UserError(f"no run folder at {path}: {_nearest_run(path)}")
        if not config_path.is_file():
            raise UserError(f"{path} is not a run folder: it has no config.yaml; {_nearest_run(path / '_')}")
        metrics_path, environment_path = path / "metrics.csv", path / "environment.json"
        environment = read_json(environment_path) if environment_path.is_file() else {}
        if not isinstance(environment, dict):
            raise UserError(f"{environment_path} must hold a JSON object, not {type(environment).__name__}")
        return cls(
            path=path,
            label=path.resolve().name,
            config=read_config(config_path),
            config_text=config_path.read_text(encoding="utf-8"),
            metrics=read_metrics(metrics_path) if metrics_path.is_file() else {},
            results=[read_result(p) for p in sorted((path / "results").glob("*.json"))],
            environment={str(key): str(value) for key, value in environment.items()},
        )

    def curve(self, column: str) -> tuple[Column, Column]:
        """Steps and values of ``column`` where it has a finite value."""
        values = self.metrics[column]
        keep = np.isfinite(values)
        return self.metrics["step"][keep], values[keep]

    def latest(self) -> dict[tuple[str, str], Result]:
        """The newest result of each (protocol, data set)."""
        newest: dict[tuple[str, str], Result] = {}
        for result in self.results:
            key = (result.protocol, result.data)
            if key not in newest or result.created >= newest[key].created:
                newest[key] = result
        return newest


def _nearest_run(path: Path) -> str:
    """A hint at the run folders beside ``path``."""
    siblings = [p.name for p in path.parent.glob("*") if (p / "config.yaml").is_file()]
    return nearest(path.name, siblings) if siblings else f"{path.parent} holds no runs"


def unique_labels(runs: Sequence[RunFolder]) -> list[str]:
    """The shortest trailing part of each run's path that tells the runs apart."""
    parts = [run.path.resolve().parts for run in runs]
    labels = [run.label for run in runs]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        if len(set(labels)) == len(labels):
            break
        labels = ["/".join(parts[i][-depth:]) if labels.count(label) > 1 else label for i, label in enumerate(labels)]
    return labels


def read_config(path: Path) -> dict[str, Any]:
    """A YAML config as plain containers; one that is broken is a `UserError` that names it."""
    try:
        loaded = OmegaConf.load(path)
        config = OmegaConf.to_container(loaded, resolve=False)
    except Exception as error:  # yaml, omegaconf and the file system each have their own
        raise UserError(f"{path} is not a valid config: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold keys and values, not a list")
    return {str(key): value for key, value in config.items()}


def read_metrics(path: Path) -> dict[str, Column]:
    """Columns of ``metrics.csv``, nan for an empty cell.

    Raises:
        UserError: no ``step`` column, a row of another length, or a cell that is no number; names the line.
    """
    line = 0
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header, rows = next(reader, []), []
            for row in reader:
                line = reader.line_num
                if row:
                    rows.append(_numbers(path, line, header, row))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}, after line {line}: {error}") from error
    if header and "step" not in header:
        raise UserError(f"{path} has no column 'step'; it has: {', '.join(header)}")
    if len(set(header)) < len(header):
        raise UserError(f"{path} names a column twice: {', '.join(header)}")
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
    if header and not np.isfinite(table[:, header.index("step")]).all():
        raise UserError(f"{path}: column 'step' has an empty cell; every row needs its step")
    return {name: table[:, i] for i, name in enumerate(header)}


def _numbers(path: Path, line: int, header: list[str], row: list[str]) -> list[float]:
    if len(row) != len(header):
        raise UserError(f"{path} line {line}: {len(row)} cells where the header has {len(header)}")
    values = []
    for name, cell in zip(header, row):
        try:
            values.append(float(cell) if cell.strip() else math.nan)
        except ValueError as error:
            raise UserError(f"{path} line {line}: {name} is {cell!r}, not a number") from error
    return values


def read_result(path: Path) -> Result:
    """One ``results/*.json``.

    Raises:
        UserError: broken JSON, no ``protocol`` or ``metrics``, or a metric that is not a number.
    """
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(raw).__name__}")
    for key, kind in {"protocol": str, "metrics": dict}.items():
        if not isinstance(raw.get(key), kind):
            raise UserError(f"{path} is not a result: {key!r} is missing or not a {kind.__name__}")
    for key, value in {**raw["metrics"], "seconds": raw.get("seconds") or 0.0}.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path}: {key} is {value!r}, not a number")
    config, selected, grid = raw.get("config"), raw.get("selected"), raw.get("grid")
    return Result(
        path=path,
        protocol=f"{raw['protocol']} ({raw['variant']})" if raw.get("variant") else raw["protocol"],
        data=name_of(raw.get("data")),
        metrics={str(name): float(value) for name, value in raw["metrics"].items()},
        selected=dict(selected) if isinstance(selected, Mapping) else {},
        grid=[dict(row) for row in grid if isinstance(row, Mapping)] if isinstance(grid, list) else [],
        config=dict(config) if isinstance(config, Mapping) else {},
        backbone=name_of(raw.get("backbone")),
        checkpoint=name_of(raw.get("checkpoint")),
        data_fingerprint=name_of(raw.get("data_fingerprint")),
        seconds=float(raw["seconds"]) if raw.get("seconds") is not None else math.nan,
        created=name_of(raw.get("created")),
    )


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """What a run was, in a few words each, and whether its loss ever stopped being a number."""
    found = [(key, name_of(run.config.get(key))) for key in ("method", "backbone", "data", "seed")]
    if not run.metrics or not len(run.metrics["step"]):
        found.append(("training", "none logged"))
        return [(key, value) for key, value in found if value]
    found.append(("last step", f"{run.metrics['step'][-1]:,.0f}"))
    loss = run.metrics.get("loss", np.empty(0))
    if len(loss):
        found.append(("last loss", f"{loss[-1]:.4g}"))
    if not np.isfinite(loss).all():
        found.append(("warning", f"the loss is not a number in {(~np.isfinite(loss)).sum()} of {len(loss)} rows"))
    if "images_per_second" in run.metrics and len(run.curve("images_per_second")[1]):
        found.append(("images/s", f"{np.median(run.curve('images_per_second')[1]):,.0f} (median)"))
    return [(key, value) for key, value in found if value]
