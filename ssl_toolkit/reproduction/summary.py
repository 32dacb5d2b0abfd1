"""A study's numbers: means and standard errors over seeds, paired differences, the paper's beside them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssl_toolkit.files import read_json
from ssl_toolkit.reporting.cost import cost
from ssl_toolkit.reporting.runs import RunFolder
from ssl_toolkit.reproduction.jobs import DONE, MEMORY, Job
from ssl_toolkit.reproduction.studies import COLUMNS, Study

SOURCES = {
    "classification": {"mini": ("linear", "top1"), "paper": ("linear_augmented", "top1")},
    "segmentation": {"mini": ("segmentation", "miou"), "paper": ("segmentation_augmented", "miou")},
}
"""Protocol and metric of a column, by scale."""

CONFIG, REPORT = "config.yaml", "report.html"
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
        values: row to column (of the study, and ``time``) to the value of each seed, nan where a run is missing or
            failed.
        failed: row and seed to why.
        folders: row to the folders of its runs.
        queued: row and seed to the job that is to train it.
        pictures: names of files beside the tables.
    """

    study: Study
    scale: str
    seeds: list[int]
    values: dict[str, dict[str, list[float]]]
    failed: dict[str, str] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)
    queued: dict[str, str] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Of the study, and what its runs cost."""
        return list(dict.fromkeys([*self.study.columns, "time"]))

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
                "reports": [f"{f}/{REPORT}" for f in self.folders.get(row.name, []) if (Path(f) / REPORT).is_file()],
                **{c: {**vars(self.mean(row.name, c)), "seeds": self.values[row.name][c]} for c in self.columns},
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
            "queued": self.queued,
            "pictures": self.pictures,
        }


def summarise(
    study: Study,
    jobs: Sequence[Job],
    scale: str,
    seeds: Sequence[int],
    failed: Mapping[Path, str],
    queued: Mapping[Path, str] | None = None,
) -> Summary:
    """Read the runs of a study.

    Args:
        failed: folder to reason.
        queued: folder to job.
    """
    nothing = [math.nan] * len(seeds)
    folders: dict[str, list[str]] = {row.name: [] for row in study.rows}
    summary = Summary(study, scale, list(seeds), {}, {}, folders)
    for row in study.rows:
        summary.values[row.name] = {column: list(nothing) for column in summary.columns}
    for job in jobs:
        for name in [row for of, row in job.rows if of == study.name]:
            folders[name].append(str(job.folder))
            which = f"{name}, seed {job.seed}"
            if job.folder in failed:
                summary.failed[which] = failed[job.folder]
            if queued and job.folder in queued:
                summary.queued[which] = queued[job.folder]
            elif job.folder not in failed and (job.folder / DONE).is_file():
                run = RunFolder.read(job.folder)
                for column in summary.columns:
                    summary.values[name][column][list(seeds).index(job.seed)] = _value(run, column, scale)
    return summary


def _value(run: RunFolder, column: str, scale: str) -> float:
    if column == "time":
        return cost(run).get("training minutes", math.nan)
    if column == "memory":  # of the GPU where it was logged, else of the process
        path = run.path / MEMORY
        return cost(run).get("peak GiB", float(read_json(path)["peak_gib"]) if path.is_file() else math.nan)
    protocol, metric = SOURCES[column][scale]
    found = [result for (name, _), result in run.latest().items() if name == protocol]
    return found[0].metrics[metric] if found else math.nan


def _title(column: str, whose: str) -> str:
    unit = {"ours": ", min", "paper": ", h"}[whose] if column == "time" else ""
    return f"{COLUMNS[column]}{unit}: {whose}"


def _cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows: ours with its standard error, and the paper's."""
    rows = summary.study.rows
    papers = {column for row in rows for column in row.paper}
    header, lines = ["setting"], [[row.name] for row in rows]
    for column in summary.columns:
        header.append(_title(column, "ours"))
        for line, row in zip(lines, rows):
            line.append(summary.mean(row.name, column).show() or "no result")
        if column in papers:
            header.append(_title(column, "paper"))
            for line, row in zip(lines, rows):
                line.append(f"{row.paper[column]:.1f}" if column in row.paper else "")
    return header, lines


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


def _tables(summary: Summary) -> list[tuple[list[str], list[list[str]]]]:
    return [_cells(summary), *([_differences(summary)] if summary.study.pairs else [])]


def _footnotes(summary: Summary) -> list[str]:
    notes = [
        f"ours: mean over seeds {', '.join(map(str, summary.seeds))} ± standard error; * more than {FIRM:g} of them"
    ]
    if summary.study.paper_setting:
        notes.append(f"paper: {summary.study.paper_setting}")
    notes += [f"failed: {which}: {why}" for which, why in summary.failed.items()]
    notes += [f"waiting for {which}: {job}" for which, job in summary.queued.items()]
    return notes


def terminal(summary: Summary) -> RenderableType:
    """Two tables and their footnotes."""
    parts: list[RenderableType] = [Text(summary.study.title, style="bold"), Text(summary.study.question, style="dim")]
    for header, rows in _tables(summary):
        table = Table()
        for i, title in enumerate(header):
            table.add_column(title, justify="right" if i else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        parts.append(table)
    return Group(*parts, *(Text(note, style="dim") for note in _footnotes(summary)))


def markdown(summary: Summary) -> str:
    """The same for a page, with the overrides that make each row, and its runs."""

    def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        rule = "|---|" + "---:|" * (len(header) - 1)
        return "\n".join(["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])

    settings = [
        [row.name, f"`{' '.join(row.overrides[summary.scale])}`", _runs(summary.folders.get(row.name, []))]
        for row in summary.study.rows
    ]
    blocks = [
        f"## {summary.study.title}",
        summary.study.question,
        *(f"![{summary.study.title}]({name})" for name in summary.pictures if name.endswith(".png")),
        *(table(*each) for each in _tables(summary)),
        "\n".join(f"- {note}" for note in _footnotes(summary)),
        table(["setting", "overrides", "runs: config, report"], settings),
    ]
    return "\n\n".join(blocks) + "\n"


def _runs(folders: Sequence[str]) -> str:
    """Links to the files of runs, from the folder that holds ``runs``."""
    shown = []
    for folder in map(Path, folders):
        links = [f"{folder.parent.name}/{folder.name}/{name}" for name in (CONFIG, REPORT) if (folder / name).is_file()]
        shown.append(f"[{folder.name}]({links[0]})" if links else folder.name)
        shown[-1] += "".join(f" ([report]({link}))" for link in links[1:])
    return ", ".join(shown)


def as_csv(summary: Summary) -> str:
    """A row for each setting and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["study", "scale", "setting", "seed", *summary.columns, "run"])
    for row in summary.study.rows:
        for i, seed in enumerate(summary.seeds):
            numbers = [summary.values[row.name][column][i] for column in summary.columns]
            shown = ["" if math.isnan(number) else f"{number:.4f}" for number in numbers]
            run = dict(zip(summary.seeds, summary.folders.get(row.name, []))).get(seed, "")
            writer.writerow([summary.study.name, summary.scale, row.name, seed, *shown, run])
    return text.getvalue()
