"""Runs side by side: which options differ, which numbers follow, and how far each is from the first run."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path, write_text
from ssl_toolkit.reporting.cost import cost_rows
from ssl_toolkit.reporting.runs import Result, RunFolder, unique_labels

MAIN_METRICS = {
    ("knn", "top1"): "kNN top-1",
    ("linear", "top1"): "linear top-1",
    ("linear_augmented", "top1"): "linear (crops) top-1",
    ("finetune", "top1"): "fine-tuned top-1",
    ("segmentation", "miou"): "mIoU",
    ("segmentation", "foreground_miou"): "foreground mIoU",
    ("segmentation", "pixel_accuracy"): "pixel accuracy",
    ("segmentation_augmented", "miou"): "mIoU (crops)",
    ("detection", "ap"): "linear AP",
    ("detection_finetune", "ap"): "fine-tuned AP",
    ("detection_finetune", "mask_ap"): "fine-tuned mask AP",
    ("matching", "match_0"): "right matches",
    ("matching", "auc"): "match AUC",
    ("match_rules", "top_gamma_on_objects"): "L_d on objects",
    ("match_rules", "top_gamma_right"): "L_d right",
    ("spectrum", "rankme"): "RankMe (no %)",
    ("clustering", "miou"): "k-means mIoU",
    ("clustering", "image_nmi"): "k-means NMI",
}
"""The columns of a comparison, in order. Protocols that are not here show all their metrics."""

RUN_SPECIFIC = (
    "run",
    "run_dir",
    "runs",
    "runs_dir",
    "out",
    "output_dir",
    "name",
    "resume",
    "hydra",
    "command",
    "created",
)
"""Top-level config keys that differ between any two runs and explain nothing."""

NOT_SET = "not set"

NUMBERED = 4
"""From this many runs on, terminal tables refer to runs by number."""


@dataclass(frozen=True)
class Metric:
    """A column: one number of one protocol on one data set."""

    protocol: str
    data: str
    name: str
    title: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several runs, their numbers and their differing options.

    Attributes:
        labels: one for each run, all different.
        metrics: the columns.
        values: ``(runs, metrics)`` percent, nan where a run has no such result.
        differences: flattened config key to its value in each run, only keys that differ.
        notes: sentences on what makes the numbers incomparable, if anything does.
    """

    runs: list[RunFolder]
    labels: list[str]
    metrics: list[Metric]
    values: NDArray[np.float64]
    differences: dict[str, list[str]]
    notes: list[str]

    @property
    def deltas(self) -> NDArray[np.float64]:
        """``(runs, metrics)`` percentage points above the first run."""
        return self.values - self.values[:1]

    @property
    def best(self) -> NDArray[np.bool_]:
        """``(runs, metrics)``, whether a value is its column's highest to one decimal; never for one run."""
        shown = np.where(np.isnan(self.values), -np.inf, np.round(self.values, 1))
        return np.isfinite(shown) & (shown == shown.max(axis=0)) & (len(self.runs) > 1)

    def selected(self) -> dict[str, list[str]]:
        """``"linear: selected"`` to the hyper-parameters that each run's protocol chose."""
        keys = list(dict.fromkeys((m.protocol, m.data) for m in self.metrics))
        several = len({data for _, data in keys}) > 1
        rows = {}
        for protocol, data in keys:
            results = [run.latest().get((protocol, data)) for run in self.runs]
            cells = [show_options(result.selected) if result else "" for result in results]
            if any(cells):
                rows[f"{protocol}{f' on {data}' if several else ''}: selected"] = cells
        return rows

    def details(self) -> dict[str, list[str]]:
        """What the runs differ in, what their protocols selected, and what they cost: a cell for each run."""
        return {**self.differences, **self.selected(), **cost_rows(self.runs)}

    def print(self, console: Console | None = None) -> None:
        """Print the numbers, the differences and the notes."""
        console = console or Console()
        console.print(comparison_table(self))
        if self.details():
            console.print(differences_table(self))
        for note in self.notes:
            console.print(note, markup=False, highlight=False)

    def write_csv(self, path: Path) -> None:
        """One row for each run: label, path, differing options, then value, delta and selected options."""
        chosen = {**self.selected(), **cost_rows(self.runs)}
        header = ["run", "path", *self.differences]
        for metric in self.metrics:
            header += [metric.title, f"{metric.title} delta"]
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*header, *chosen])
            for i, run in enumerate(self.runs):
                row = [self.labels[i], str(run.path), *(cells[i] for cells in self.differences.values())]
                for value, delta in zip(self.values[i], self.deltas[i]):
                    row += [_exact(value), _exact(delta)]
                writer.writerow([*row, *(cells[i] for cells in chosen.values())])

    def write_markdown(self, path: Path) -> None:
        """The numbers (best in bold, delta in brackets), the differences and the notes."""
        write_text(path, self.markdown())

    def markdown(self) -> str:
        """What `write_markdown` writes."""
        rows = []
        for i, label in enumerate(self.labels):
            cells = [label]
            for j in range(len(self.metrics)):
                value, delta = self.cell(i, j)
                value = f"**{value}**" if self.best[i, j] else value
                cells.append(f"{value} ({delta})" if delta else value)
            rows.append(cells)
        blocks = [_markdown_table(["run", *(m.title for m in self.metrics)], rows)]
        if details := self.details():
            blocks.append(_markdown_table(["option", *self.labels], [[k, *v] for k, v in details.items()]))
        return "\n\n".join([*blocks, *self.notes]) + "\n"

    def cell(self, run: int, metric: int) -> tuple[str, str]:
        """Value and delta as text (``("32.8", "+8.4")``); empty where there is none."""
        value, delta = self.values[run, metric], self.deltas[run, metric]
        has_delta = run > 0 and not math.isnan(delta)
        return ("" if math.isnan(value) else f"{value:.1f}", f"{delta:+.1f}" if has_delta else "")


def compare(paths: Sequence[Path | str | RunFolder]) -> Comparison:
    """Compare run folders; deltas are against the first.

    Args:
        paths: run folders, or runs already read.

    Raises:
        UserError: no path, the same run twice, or a folder that is not a run.
    """
    if not paths:
        raise UserError("nothing to compare: name at least one run folder")
    runs = [path if isinstance(path, RunFolder) else RunFolder.read(path) for path in paths]
    where = [run.path.resolve() for run in runs]
    for i, path in enumerate(where):
        if path in where[:i]:
            raise UserError(f"{runs[i].path} is named twice; name each run once")
    metrics = _columns(runs)
    newest = [run.latest() for run in runs]
    values = np.full((len(runs), len(metrics)), np.nan)
    for i, results in enumerate(newest):
        for j, metric in enumerate(metrics):
            result = results.get((metric.protocol, metric.data))
            values[i, j] = result.metrics.get(metric.name, np.nan) if result else np.nan
    labels = unique_labels(runs)
    return Comparison(runs, labels, metrics, values, config_differences(runs), _notes(labels, newest))


def _columns(runs: Sequence[RunFolder]) -> list[Metric]:
    """Main metrics first, in the order of `MAIN_METRICS`, then whatever else was measured."""
    listed = {protocol for protocol, _ in MAIN_METRICS}
    found: dict[tuple[str, str, str], None] = {}
    for run in runs:
        for (protocol, data), result in run.latest().items():
            for name in result.metrics:
                if (plain(protocol), name) in MAIN_METRICS or plain(protocol) not in listed:
                    found[protocol, data, name] = None
    order = list(MAIN_METRICS)
    several = len({data for _, data, _ in found}) > 1

    def place(key: tuple[str, str, str]) -> tuple[int, str]:
        pair = (plain(key[0]), key[2])
        return (order.index(pair) if pair in MAIN_METRICS else len(order), key[1])

    return [
        Metric(protocol, data, name, metric_title(protocol, name) + (f" ({data})" if several else ""))
        for protocol, data, name in sorted(found, key=place)
    ]


NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "miou": "mIoU",
    "foreground_miou": "foreground mIoU",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "auc": "AUC",
    "rankme": "RankMe",
    "image_nmi": "image NMI",
}


def metric_name(name: str) -> str:
    """What a metric is called beside its protocol."""
    return NAMES.get(name, name.replace("_", " "))


def metric_title(protocol: str, name: str) -> str:
    """What a metric is called in tables."""
    spelled = f"{protocol.replace('_', ' ')} {metric_name(name)}"
    main = MAIN_METRICS.get((plain(protocol), name))
    return spelled if main is None else main + protocol.removeprefix(plain(protocol))


def plain(protocol: str) -> str:
    """A protocol without its variant: ``linear (10pct)`` is ``linear``."""
    return protocol.split(" (")[0]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as ``{"method.alpha": "0.75"}``; a list is one value."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def config_differences(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """Flattened config keys whose values are not the same in all ``runs``; `RUN_SPECIFIC` ones left out.

    An untrained baseline has no training options, which is no difference worth a row: only keys that it has count.
    """
    flat = [flatten({key: value for key, value in run.config.items() if key not in RUN_SPECIFIC}) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = {key: [config.get(key, NOT_SET) for config in flat] for key in keys}
    trained = ["trainer" in run.config for run in runs]
    compared = {
        key: {cell for cell, counts in zip(cells, trained) if counts or cell != NOT_SET} for key, cells in rows.items()
    }
    return {key: rows[key] for key in rows if len(compared[key]) > 1}


def _notes(labels: Sequence[str], newest: Sequence[Mapping[tuple[str, str], Result]]) -> list[str]:
    """What a reader must know before trusting the deltas."""
    notes = []
    for key in dict.fromkeys(key for results in newest for key in results):
        protocol, data = key
        found = [results[key] for results in newest if key in results]
        if len({result.data_fingerprint for result in found}) > 1:
            notes.append(f"Not the same images: {protocol} on {data} was measured on data with different fingerprints.")
        settings = [flatten(result.config) for result in found]
        keys = sorted({k for s in settings for k in s if len({t.get(k) for t in settings}) > 1})
        if keys:
            notes.append(f"Not the same protocol: {protocol} on {data} ran with different {', '.join(keys)}.")
    for label, results in zip(labels, newest):
        if not results:
            notes.append(f"{label} has no results yet: ssl-toolkit eval knn,linear,segmentation run=...")
    return notes


def comparison_table(comparison: Comparison) -> Table:
    """A row for each run, a column for each metric; best in bold, delta against the first run.

    Long labels fold, so the delta then goes below its value to leave them room; from `NUMBERED` runs on, rows
    are numbered for `differences_table`.
    """
    below = max(map(len, comparison.labels)) > 16
    where = "below" if below else "beside"
    title = f"percent; difference to the first run {where} it" if len(comparison.labels) > 1 else "percent"
    table = Table(title=title, title_style="dim", title_justify="left")
    if len(comparison.labels) >= NUMBERED:
        table.add_column("#", justify="right")
    table.add_column("run", overflow="fold")
    for metric in comparison.metrics:
        table.add_column(metric.title, justify="right")
    for i, label in enumerate(comparison.labels):
        row = [Text(str(i + 1))] if len(comparison.labels) >= NUMBERED else []
        row.append(Text(label))
        for j in range(len(comparison.metrics)):
            value, delta = comparison.cell(i, j)
            text = Text(value, style="bold" if comparison.best[i, j] else "")
            if delta:
                text.append(f"\n{delta}" if below else f" {delta:>5}", style="not bold dim")
            row.append(text)
        table.add_row(*row)
    return table


def differences_table(comparison: Comparison) -> Table:
    """A row for each differing option and each selected hyper-parameter, a column for each run."""
    table = Table(title="what differs", title_style="dim", title_justify="left")
    table.add_column("option", overflow="fold")
    for i, label in enumerate(comparison.labels):
        title = f"run {i + 1}" if len(comparison.labels) >= NUMBERED else label
        table.add_column(Text(title), overflow="fold")
    for key, cells in comparison.details().items():
        table.add_row(Text(key), *(Text(cell) for cell in cells))
    return table


def show_options(options: Mapping[str, Any]) -> str:
    """``{"lr": 0.1, "k": 20}`` as ``"lr 0.1, k 20"``."""
    return ", ".join(f"{key} {value}" for key, value in flatten(options).items())


def _exact(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in cells) + " |"

    rule = "| " + " | ".join(["---", *("---:" for _ in header[1:])]) + " |"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])
