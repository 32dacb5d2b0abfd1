"""Published checkpoints under one protocol: the table of ``ssl-toolkit zoo evaluate``, beside published numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssl_toolkit.evaluation import PROTOCOLS
from ssl_toolkit.evaluation.results import LABELS
from ssl_toolkit.zoo import MEASURES, Published
from ssl_toolkit.zoo.index import percent

FAMILIES = {
    "knn": "imagenet_linear",
    "linear": "imagenet_linear",
    "linear_augmented": "imagenet_linear",
    "finetune": "imagenet_linear",
    "segmentation": "voc_linear",
    "segmentation_augmented": "voc_linear",
    "detection": "voc_detection",
    "detection_finetune": "voc_detection_finetuned",
}
"""The published number to be shown beside a protocol on data that nobody published numbers of."""

SAME = {
    ("linear", "", "imagenet"): "imagenet_linear",
    ("linear_augmented", "", "imagenet"): "imagenet_linear",
    ("segmentation", "", "voc"): "voc_linear",
    ("segmentation_augmented", "", "voc"): "voc_linear",
    ("segmentation_augmented", "finetuned", "voc"): "voc_linear_finetuned",
    ("segmentation_augmented", "fcn", "voc"): "voc_fcn",
    ("segmentation_augmented", "fcn-finetuned", "voc"): "voc_fcn_finetuned",
    ("segmentation", "", "cityscapes"): "cityscapes_linear",
    ("segmentation_augmented", "", "cityscapes"): "cityscapes_linear",
    ("segmentation", "", "ade20k"): "ade20k_linear",
    ("segmentation_augmented", "", "ade20k"): "ade20k_linear",
    ("detection", "", "voc"): "voc_detection",
    ("detection_finetune", "c4", "voc"): "voc_detection_finetuned",
}
"""Protocol, variant and data to the published number of the same."""


@dataclass(frozen=True)
class Column:
    """What was measured: a protocol in a variant on a data set, and the metric that stands for it."""

    protocol: str
    variant: str
    data: str
    metric: str

    @property
    def key(self) -> str:
        """For files."""
        return "-".join(filter(None, (self.protocol, self.variant, self.data)))

    @property
    def title(self) -> str:
        """For people."""
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.protocol.replace('_', ' ')}{variant} {LABELS.get(self.metric, self.metric)}, {self.data}"


@dataclass(frozen=True)
class ZooTable:
    """Measured and published numbers, in percent.

    Attributes:
        entries: the rows.
        values: of each entry by name, what was measured.
        failed: entry and protocol to why; ``left_out``, entry to why it was not evaluated.
        notes: what a reader must know before comparing.
    """

    entries: Sequence[Published]
    values: Mapping[str, Mapping[Column, float]]
    failed: Mapping[tuple[str, str], str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def columns(self) -> list[Column]:
        """What was measured of any entry, in the order of the protocols' names in `FAMILIES`, then the others."""
        found = {column for row in self.values.values() for column in row}
        order = [*FAMILIES, *(name for name in PROTOCOLS.names() if name not in FAMILIES)]
        return sorted(found, key=lambda c: (order.index(c.protocol), c.variant, c.data))

    @property
    def measures(self) -> list[str]:
        """Keys of the published numbers that belong beside them: of the same protocol and data where there are any."""
        exact = [SAME.get((c.protocol, c.variant, c.data)) for c in self.columns]
        covered = {FAMILIES[c.protocol] for c, same in zip(self.columns, exact) if same and c.protocol in FAMILIES}
        others = [FAMILIES[c.protocol] for c in self.columns if c.protocol in FAMILIES]
        wanted = [*filter(None, exact), *(measure for measure in others if measure not in covered)]
        return list(dict.fromkeys(wanted))

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows."""
        columns, measures = self.columns, self.measures
        header = ["name", "architecture", *(c.title for c in columns), *(f"published: {MEASURES[m]}" for m in measures)]
        rows = []
        for entry in self.entries:
            row = [entry.name, entry.arch, *(self._value(entry, column) for column in columns)]
            for measure in measures:
                found = entry.number(measure)
                row.append("" if found is None else f"{percent(found[0])} ({found[1]})")
            rows.append(row)
        return header, rows

    def _value(self, entry: Published, column: Column) -> str:
        value = self.values.get(entry.name, {}).get(column)
        if value is None:
            return "failed" if (entry.name, column.protocol) in self.failed else ""
        return f"{value:.1f}"

    def footnotes(self) -> list[str]:
        """Notes, failures, and what was left out."""
        lines = ["published: by the VICRegL paper, with its table, or by the authors of the weights", *self.notes]
        lines += [f"failed: {name}, {protocol}: {why}" for (name, protocol), why in self.failed.items()]
        return [*lines, *(f"left out: {name}: {why}" for name, why in self.left_out.items())]


def terminal(table: ZooTable) -> RenderableType:
    """The table and its footnotes."""
    header, rows = table.cells()
    shown = Table()
    for i, title in enumerate(header):
        shown.add_column(Text(title), justify="left" if i < 2 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    return Group(shown, *(Text(line, style="dim") for line in table.footnotes()))


def markdown(table: ZooTable) -> str:
    """The same for a page."""
    header, rows = table.cells()
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)], *rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return body + "\n\n" + "\n".join(f"- {line}" for line in table.footnotes()) + "\n"


def as_csv(table: ZooTable) -> str:
    """A row for each entry: what was measured, then each published number and where it stands."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    published = [name for measure in table.measures for name in (measure, f"{measure}_from")]
    about = ["name", "method", "architecture", "params", "alpha", "epochs", "licence"]
    writer.writerow([*about, *(column.key for column in table.columns), *published])
    for entry in table.entries:
        row: list[Any] = [entry.name, entry.method, entry.arch, entry.params, entry.alpha, entry.epochs, entry.license]
        values = table.values.get(entry.name, {})
        row += [f"{values[column]:.4f}" if column in values else "" for column in table.columns]
        for measure in table.measures:
            row += entry.number(measure) or ("", "")
        writer.writerow(row)
    return text.getvalue()


def as_dict(table: ZooTable) -> dict[str, Any]:
    """Plain values, for JSON: with all published numbers of each entry."""
    rows = []
    for entry in table.entries:
        measured = [{**vars(c), "value": value} for c, value in table.values.get(entry.name, {}).items()]
        about = {key: getattr(entry, key) for key in ("name", "method", "arch", "params", "alpha", "epochs", "license")}
        rows.append({**about, "measured": measured, "published": {k: dict(v) for k, v in entry.numbers.items()}})
    return {
        "rows": rows,
        "failed": [{"name": n, "protocol": p, "reason": why} for (n, p), why in table.failed.items()],
        "left_out": dict(table.left_out),
        "notes": list(table.notes),
    }
