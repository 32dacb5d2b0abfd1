"""A study's numbers: means and standard errors over seeds, paired differences, the paper's beside them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssl_toolkit.files import read_json
from ssl_toolkit.reporting.cost import cost
from ssl_toolkit.reporting.runs import RunFolder
from ssl_toolkit.reproduction.jobs import DONE, Job
from ssl_toolkit.reproduction.studies import COLUMNS, Study

SOURCES = {
    "classification": {"mini": ("linear", "top1"), "paper": ("linear_augmented", "top1")},
    "segmentation": {"mini": ("segmentation", "miou"), "paper": ("segmentation_augmented", "miou")},
}
"""Protocol and metric of a column, by scale."""

FIRM = 2.0
"""Standard errors from which a difference is called one."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: nan without values.
        error: its standard error, from the sample's standard deviation; nan for fewer than two values.
        count: seeds.
    """

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[np.float64]) -> Estimate:
        """Of the finite ones of ``values``."""
        kept = np.asarray(values, dtype=np.float64)
        kept = kept[np.isfinite(kept)]
        mean = float(kept.mean()) if len(kept) else math.nan
        error = float(kept.std(ddof=1) / math.sqrt(len(kept))) if len(kept) > 1 else math.nan
        return cls(mean, error, len(kept))

    @property
    def firm(self) -> bool:
        """Whether it is more than `FIRM` standard errors from zero."""
        return abs(self.mean) > FIRM * self.error

    def show(self, signed: bool = False) -> str:
        """``"32.8 ± 0.3"``."""
        if not self.count:
            return ""
        value = f"{self.mean:+.1f}" if signed else f"{self.mean:.1f}"
        return value if math.isnan(self.error) else f"{value} ± {self.error:.1f}"


@dataclass(frozen=True)
class Summary:
    """What came out of a study.

    Attributes:
        values: row to column to the value of each seed, nan where a run is missing or failed.
        failed: row and seed to why.
        folders: row to the folders of its runs.
    """

    study: Study
    scale: str
    seeds: list[int]
    values: dict[str, dict[str, list[float]]]
    failed: dict[str, str] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)

    def mean(self, row: str, column: str) -> Estimate:
        """Over the seeds."""
        return Estimate.of(self.values[row][column])

    def difference(self, first: str, second: str, column: str) -> Estimate:
        """``second`` less ``first``, seed by seed: what the seeds have in common cancels."""
        return Estimate.of(np.subtract(self.values[second][column], self.values[first][column]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [
            {
                "name": row.name,
                "overrides": row.overrides[self.scale],
                "paper": row.paper,
                "runs": self.folders.get(row.name, []),
                **{c: {**vars(self.mean(row.name, c)), "seeds": self.values[row.name][c]} for c in self.study.columns},
            }
            for row in self.study.rows
        ]
        differences = [
            {"from": first, "to": second, **{c: vars(self.difference(first, second, c)) for c in self.study.columns}}
            for first, second in self.study.pairs
        ]
        about = {key: getattr(self.study, key) for key in ("name", "title", "question", "paper_setting")}
        return {
            **about,
            "scale": self.scale,
            "seeds": self.seeds,
            "rows": rows,
            "differences": differences,
            "failed": self.failed,
        }


def summarise(
    study: Study, jobs: Sequence[Job], scale: str, seeds: Sequence[int], failed: Mapping[str, str]
) -> Summary:
    """Read the runs of a study.

    Args:
        failed: folder to reason.
    """
    values = {row.name: {column: [math.nan] * len(seeds) for column in study.columns} for row in study.rows}
    reasons: dict[str, str] = {}
    folders: dict[str, list[str]] = {row.name: [] for row in study.rows}
    for job in jobs:
        for name in [row for of, row in job.rows if of == study.name]:
            folders[name].append(str(job.folder))
            if str(job.folder) in failed:
                reasons[f"{name}, seed {job.seed}"] = failed[str(job.folder)]
            elif (job.folder / DONE).is_file():
                run = RunFolder.read(job.folder)
                for column in study.columns:
                    values[name][column][list(seeds).index(job.seed)] = _value(run, column, scale)
    return Summary(study, scale, list(seeds), values, reasons, folders)


def _value(run: RunFolder, column: str, scale: str) -> float:
    if column == "time":
        return cost(run).get("training minutes", math.nan)
    if column == "memory":  # of the GPU where it was logged, else of the process
        return cost(run).get("peak GiB", float(read_json(run.path / DONE)["memory_gib"]))
    protocol, metric = SOURCES[column][scale]
    found = [result for (name, _), result in run.latest().items() if name == protocol]
    return found[0].metrics[metric] if found else math.nan


def _title(column: str, whose: str) -> str:
    unit = {"ours": ", min", "paper": ", h"}[whose] if column == "time" else ""
    return f"{COLUMNS[column]}{unit}: {whose}"


def _cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows: ours with its standard error, and the paper's."""
    study = summary.study
    with_paper = any(row.paper for row in study.rows)
    header = ["setting"]
    for column in study.columns:
        header += [_title(column, "ours"), *([_title(column, "paper")] if with_paper else [])]
    rows = []
    for row in study.rows:
        cells = [row.name]
        for column in study.columns:
            cells.append(summary.mean(row.name, column).show() or "no result")
            if with_paper:
                cells.append(f"{row.paper[column]:.1f}" if column in row.paper else "")
        rows.append(cells)
    return header, rows


def _differences(summary: Summary) -> tuple[list[str], list[list[str]]]:
    study = summary.study
    papers = {row.name: row.paper for row in study.rows}
    header = ["difference, seed by seed"]
    for column in study.columns:
        header += [_title(column, "ours"), *([_title(column, "paper")] if any(papers.values()) else [])]
    rows = []
    for first, second in study.pairs:
        cells = [f"{second} less {first}"]
        for column in study.columns:
            estimate = summary.difference(first, second, column)
            cells.append(
                f"{estimate.show(signed=True)}{' *' if estimate.firm else ''}" if estimate.count else "no result"
            )
            if any(papers.values()):
                both = column in papers[first] and column in papers[second]
                cells.append(f"{papers[second][column] - papers[first][column]:+.1f}" if both else "")
        rows.append(cells)
    return header, rows


def _footnotes(summary: Summary) -> list[str]:
    notes = [
        f"ours: mean over seeds {', '.join(map(str, summary.seeds))} ± standard error; * more than {FIRM:g} of them"
    ]
    if summary.study.paper_setting:
        notes.append(f"paper: {summary.study.paper_setting}")
    notes += [f"failed: {which}: {why}" for which, why in summary.failed.items()]
    return notes


def terminal(summary: Summary) -> RenderableType:
    """Two tables and their footnotes."""
    parts: list[RenderableType] = [Text(summary.study.title, style="bold"), Text(summary.study.question, style="dim")]
    for header, rows in (_cells(summary), _differences(summary)):
        table = Table()
        for i, title in enumerate(header):
            table.add_column(title, justify="right" if i else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        parts.append(table)
    return Group(*parts, *(Text(note, style="dim") for note in _footnotes(summary)))


def markdown(summary: Summary) -> str:
    """The same for a page, with the overrides that make each row."""

    def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        rule = "|---|" + "---:|" * (len(header) - 1)
        return "\n".join(["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])

    configs = [[row.name, f"`{' '.join(row.overrides[summary.scale])}`"] for row in summary.study.rows]
    blocks = [
        f"## {summary.study.title}",
        summary.study.question,
        table(*_cells(summary)),
        table(*_differences(summary)),
        "\n".join(f"- {note}" for note in _footnotes(summary)),
        table(["setting", "overrides"], configs),
    ]
    return "\n\n".join(blocks) + "\n"


def as_csv(summary: Summary) -> str:
    """A row for each setting and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["study", "scale", "setting", "seed", *summary.study.columns])
    for row in summary.study.rows:
        for i, seed in enumerate(summary.seeds):
            numbers = [summary.values[row.name][column][i] for column in summary.study.columns]
            shown = ["" if math.isnan(number) else f"{number:.4f}" for number in numbers]
            writer.writerow([summary.study.name, summary.scale, row.name, seed, *shown])
    return text.getvalue()
