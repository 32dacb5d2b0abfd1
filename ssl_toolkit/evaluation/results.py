"""What is kept of an evaluation, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ssl_toolkit.files import atomic_path, write_json

LABELS = {
    "top1": "top-1",
    "top5": "top-5",
    "miou": "mIoU",
    "foreground_miou": "foreground mIoU",
    "pixel_accuracy": "pixel accuracy",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "rankme": "RankMe",
    "dead": "dead channels",
    "auc": "AUC",
    "image_nmi": "image NMI",
}


@dataclass(frozen=True)
class Result:
    """One protocol on one data set, as written to ``<protocol>[-<variant>]-<data>.json``.

    Attributes:
        variant: what distinguishes it from the protocol's plain result, empty for that one.
        source: name of what was evaluated.
        metric: the key of ``metrics`` that stands for the protocol.
        metrics: on the test split, in percent.
        selected: hyper-parameters chosen on the validation split.
        grid: every setting tried with its validation and test metric; None where it diverged.
        details: further numbers, such as the IoU of each class (None where a class does not occur).
        notes: what a reader of the numbers should know.
        sizes: images in each split, and ``features``, the length of the pooled vector.
        config: the options of the protocol.
        backbone: the options of the backbone.
        checkpoint: ``path`` and ``sha256`` of the weights, None for an untrained backbone.
        input: mean, std, resize and size of the images, and the precision of the forward pass.
        data_fingerprint: of the three splits.
        seconds: of the protocol; ``extraction_seconds`` of the features, which the protocols share.
        created: ISO 8601, UTC.
    """

    protocol: str
    data: str
    source: str
    metric: str
    metrics: dict[str, float]
    selected: dict[str, Any]
    grid: list[dict[str, Any]]
    details: dict[str, Any]
    notes: list[str]
    sizes: dict[str, int]
    config: dict[str, Any]
    backbone: dict[str, Any]
    checkpoint: dict[str, str | None]
    input: dict[str, Any]
    data_fingerprint: str
    seconds: float
    extraction_seconds: float
    created: str
    variant: str = ""
    examples: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def title(self) -> str:
        """Protocol and variant, for tables."""
        return f"{self.protocol} ({self.variant})" if self.variant else self.protocol

    def as_dict(self) -> dict[str, Any]:
        """What the JSON file holds: everything but ``examples``."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "examples"}

    def write(self, folder: Path) -> Path:
        """Write ``<protocol>[-<variant>]-<data>.json`` (and ``-examples.npz`` with the examples) into ``folder``.

        Each file is written atomically; the path of the JSON is returned.
        """
        stem = "-".join(filter(None, (self.protocol, self.variant, self.data)))
        if self.examples:
            with atomic_path(folder / f"{stem}-examples.npz") as temporary:
                np.savez_compressed(temporary, **self.examples)  # type: ignore[arg-type]
        path = folder / f"{stem}.json"
        write_json(path, self.as_dict())
        return path


def grid_table(result: Result, columns: Mapping[str, str]) -> Table:
    """Some columns of the grid of one result, by key with their titles; a gap where the first of them changes."""
    title = Text(f"{result.title} on {result.data}: percent")
    table = Table(title=title, title_justify="left", title_style="dim", box=SIMPLE_HEAD, padding=0)
    numbers = {key for row in result.grid for key, value in row.items() if isinstance(value, float)}
    for key, heading in columns.items():
        is_number = key in numbers
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=not is_number)
    first, before = next(iter(columns)), None
    for row in result.grid:
        if before not in (None, row[first]):
            table.add_section()
        cells = ["" if key == first and row[key] == before else row[key] for key in columns]
        table.add_row(*(Text(f"{x:.1f}" if isinstance(x, float) else "" if x is None else str(x)) for x in cells))
        before = row[first]
    return table


def summary_table(results: Sequence[Result]) -> Table:
    """A row for each result of one call: what was measured on the test split, and what was chosen on validation."""
    first = results[0]
    counts = " / ".join(f"{first.sizes[split]:,}" for split in ("train", "val", "test"))
    title = f"{first.source} on {first.data}: {counts} images (train / val / test)"
    table = Table(title=Text(title), title_justify="left", title_style="dim")
    table.add_column("protocol", overflow="fold")
    table.add_column("percent on test", overflow="fold")
    table.add_column("chosen on validation", overflow="fold")
    for result in results:
        metrics = ", ".join(f"{LABELS.get(k, k.replace('_', ' '))} {v:.1f}" for k, v in result.metrics.items())
        chosen = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.selected.items())
        table.add_row(*map(Text, (result.title, metrics, chosen)))
    notes = [f"{result.title}: {note}" for result in results for note in result.notes]
    if notes:
        table.caption = "\n".join(notes)
        table.caption_justify = "left"
    return table
