"""One HTML file that shows a run, or several side by side, and needs nothing beside it to be opened."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
import PIL.Image
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ssl_toolkit.files import write_text
from ssl_toolkit.progress import track
from ssl_toolkit.reporting import matches, plots
from ssl_toolkit.reporting.boxes import BoxExamples, box_figure, read_boxes
from ssl_toolkit.reporting.compare import Comparison, compare, flatten, metric_name, show_options
from ssl_toolkit.reporting.masks import VOID, SegmentationExamples, read_examples
from ssl_toolkit.reporting.runs import Result, RunFolder, facts
from ssl_toolkit.reporting.trade_off import trade_off, trade_off_columns

MASK_COLUMNS = 4
"""Examples in one figure of masks: as many as can be told apart on a phone."""

MATCHES_SHOWN = 4
MOMENTS = 6
"""Match overlays shown of the course of a run."""


@dataclass
class Picture:
    """A figure to be: ``draw`` makes it, ``uri`` holds it once drawn."""

    alt: str
    draw: Callable[[], Figure]
    caption: str = ""
    uri: str = ""


@dataclass(frozen=True)
class Group:
    """Pictures that belong together, under a heading of their own if ``title`` is not empty."""

    title: str
    pictures: list[Picture]
    legend: list[tuple[str, str]] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """What the template fills in. Lists that are empty become a plain sentence there."""

    title: str
    intro: str
    runs: list[RunFolder]
    labels: list[str]
    comparison: Comparison | None
    bars: list[Picture]
    curves: list[Group]
    matches: list[Group]
    masks: list[Group]
    boxes: list[Group]
    trade_off: list[Picture] = field(default_factory=list)
    over_time: list[Picture] = field(default_factory=list)
    """Feature matches of one image while a single run trained, the first first."""

    views: str = ""
    """The sheet of views of a single run as a data URI, or empty."""

    def pictures(self) -> list[Picture]:
        """Every picture on the page."""
        groups = [*self.curves, *self.matches, *self.masks, *self.boxes]
        return [
            *self.trade_off,
            *self.bars,
            *self.over_time,
            *(picture for group in groups for picture in group.pictures),
        ]


def write_report(run: Path | str) -> Path:
    """Write ``report.html`` into a run folder: results, curves, matches, masks, config, environment.

    Returns:
        The file's path.

    Raises:
        UserError: not a run folder, a broken file in it, or a folder that cannot be written.
    """
    folder = RunFolder.read(run)
    page = Page(
        title=folder.label,
        intro="",
        runs=[folder],
        labels=[folder.label],
        comparison=None,
        bars=[],
        curves=_curves([folder]),
        matches=_matches([folder], [folder.label]),
        over_time=_over_time(folder),
        masks=_masks([folder], [folder.label]),
        boxes=_boxes([folder], [folder.label]),
        views=_sheet(folder.path / "examples" / "views.png"),
    )
    return _write(page, folder.path / "report.html")


def write_comparison_report(
    runs: Sequence[Path | str], out: Path | str, title: str = "Comparison", intro: str = ""
) -> Path:
    """Write one page on several runs, deltas against the first.

    Args:
        out: the file to write; a name that does not end in ``.html`` is a folder for ``report.html``.
        intro: plain text below the title, paragraphs separated by an empty line.

    Returns:
        The file's path.

    Raises:
        UserError: as in `write_report` and `compare`.
    """
    comparison = compare(list(runs))
    folders, labels = comparison.runs, comparison.labels
    page = Page(
        title=title,
        intro=intro,
        runs=folders,
        labels=labels,
        comparison=comparison,
        trade_off=_trade_off(comparison),
        bars=[_bar(comparison, i) for i in range(len(comparison.metrics))],
        curves=_curves(folders),
        matches=_matches(folders, labels),
        masks=_masks(folders, labels),
        boxes=_boxes(folders, labels),
    )
    out = Path(out)
    return _write(page, out if out.suffix == ".html" else out / "report.html")


def _write(page: Page, path: Path) -> Path:
    pictures = page.pictures()
    for picture in track(pictures, "report", len(pictures), "figures"):
        picture.uri = plots.data_uri(picture.draw())
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(facts=facts, metric_name=metric_name, options=show_options, flatten=flatten)
    environment.globals.update(number=_number, chip=_chip, dashes=_dashes)
    environment.globals.update(grid_columns=_grid_columns, environment_keys=_environment_keys)
    source = resources.files("ssl_toolkit.reporting").joinpath("report.html").read_text(encoding="utf-8")
    write_text(path, environment.from_string(source).render(page=page))
    return path


def _number(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3f}" if 0 < abs(value) < 0.1 else f"{value:.{digits}f}"


def _chip(index: int) -> str:
    """The colour of run ``index`` in every figure."""
    return plots.series_style(index)[0]


def _dashes(index: int) -> str:
    """The line of run ``index`` as an SVG ``stroke-dasharray`` for a line 2.5 wide."""
    return " ".join(f"{2.5 * length:g}" for length in plots.series_style(index)[1]) or "none"


def _grid_columns(result: Result) -> list[str]:
    """Columns of the table of everything a protocol tried."""
    return list(dict.fromkeys(key for row in result.grid for key in flatten(row)))


def _environment_keys(runs: Sequence[RunFolder]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.environment))


def _trade_off(comparison: Comparison) -> list[Picture]:
    """The plot of both abilities, where the runs have them."""
    columns = trade_off_columns(comparison)
    if columns is None:
        return []
    x, y = (comparison.metrics[column].title for column in columns)
    values = ", ".join(
        f"{label} {_number(row[0]) or 'no result'} and {_number(row[1]) or 'no result'}"
        for label, row in zip(comparison.labels, comparison.values[:, columns])
    )
    return [Picture(f"{x} against {y} in percent: {values}", lambda: trade_off(comparison, columns))]


def _bar(comparison: Comparison, metric: int) -> Picture:
    values = ", ".join(
        f"{label} {_number(value) or 'no result'}"
        for label, value in zip(comparison.labels, comparison.values[:, metric])
    )
    return Picture(
        f"{comparison.metrics[metric].title} in percent: {values}",
        lambda: plots.metric_bars(comparison, metric),
    )


def _curves(runs: Sequence[RunFolder]) -> list[Group]:
    """A group for each heading of `plots.GROUPS` that has a curve."""

    def picture(column: str) -> Picture:
        ends = [
            f"{run.label} ends at {run.curve(column)[1][-1]:.4g}"
            for run in runs
            if column in run.metrics and len(run.curve(column)[1])
        ]
        alt = f"{column.replace('_', ' ')} over training steps: {', '.join(ends)}"
        return Picture(alt, lambda: plots.curve_panel(runs, column))

    columns = plots.curve_columns(runs)
    groups = {title: [c for c in columns if plots.curve_group(c) == title] for title in plots.GROUPS}
    return [Group(title, [picture(column) for column in found]) for title, found in groups.items() if found]


def _sheet(path: Path) -> str:
    """A PNG as the data URI of a JPEG, a tenth of its size; empty where there is none."""
    if not path.is_file():
        return ""
    buffer = io.BytesIO()
    with PIL.Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _matches(runs: Sequence[RunFolder], labels: Sequence[str]) -> list[Group]:
    """A group for each run that saved matches, two pictures an example, one colour scale for all."""
    found = [
        (label, matches.read_matches(path))
        for label, run in zip(labels, runs)
        if (path := run.path / "examples" / "matches.npz").is_file()
    ]
    limit = matches.error_limit([e for _, examples in found for e in examples[:MATCHES_SHOWN]])

    def picture(example: matches.MatchExample, kind: matches.Kind) -> Picture:
        said = matches.describe(example, kind)
        return Picture(
            f"Matches by {kind} between two views of one image. {said}",
            lambda: matches.match_figure(example, kind, limit=limit),
            said,
        )

    return [
        Group(
            label,
            [picture(e, kind) for e in examples[:MATCHES_SHOWN] for kind in matches.KINDS],
            errors=matches.mean_errors(examples),
        )
        for label, examples in found
        if examples
    ]


def _over_time(run: RunFolder) -> list[Picture]:
    """Matches by feature of the first example while the run trained, up to `MOMENTS` evenly spread, and at its end."""
    found = sorted((run.path / "examples").glob("matches-step-*.npz"))
    if not found:
        return []
    chosen = [found[i] for i in sorted(set(np.linspace(0, len(found) - 1, MOMENTS - 1).round().astype(int).tolist()))]
    moments = [(f"Step {int(path.stem.rsplit('-', 1)[1]):,}", path) for path in chosen]
    if (run.path / "examples" / "matches.npz").is_file():
        moments.append(("End", run.path / "examples" / "matches.npz"))
    read = [(when, matches.read_matches(path)) for when, path in moments]
    limit = matches.error_limit([examples[0] for _, examples in read])

    def picture(when: str, examples: list[matches.MatchExample]) -> Picture:
        example, errors = examples[0], matches.mean_errors(examples)
        said = f"{when}: mean true error {errors['feature']:.1f} px over all {len(examples)} images"
        return Picture(
            f"Matches by feature between two views of one image. {said}",
            lambda: matches.match_figure(example, "feature", limit=limit),
            said,
        )

    return [picture(when, examples) for when, examples in read]


def _masks(runs: Sequence[RunFolder], labels: Sequence[str]) -> list[Group]:
    """A group for each set of images; runs that were tested on the same images share it."""
    sets: list[tuple[SegmentationExamples, dict[str, NDArray]]] = []
    for label, run in zip(labels, runs):
        for examples in read_examples(run.path):
            same = [shown for first, shown in sets if first.title == examples.title and first.same_images(examples)]
            if same:
                same[0][label] = examples.prediction
            else:
                sets.append((examples, {label: examples.prediction}))
    return [_mask_group(first, shown, len(runs) > 1, len(sets) > 1) for first, shown in sets]


def _boxes(runs: Sequence[RunFolder], labels: Sequence[str]) -> list[Group]:
    """A group for each detection result of each run."""
    groups = []
    for label, run in zip(labels, runs):
        for examples in read_boxes(run.path):
            starts = range(0, len(examples.image), MASK_COLUMNS)
            pictures = [_box_picture(examples, range(s, min(s + MASK_COLUMNS, len(examples.image)))) for s in starts]
            groups.append(Group(f"{label}: {examples.title}" if len(runs) > 1 else examples.title, pictures))
    return groups


def _box_picture(examples: BoxExamples, columns: range) -> Picture:
    alt = f"Images {columns.start + 1} to {columns.stop} of {len(examples.image)} with true and predicted boxes"
    return Picture(alt, lambda: box_figure(examples, columns))


def _mask_group(
    examples: SegmentationExamples, predictions: Mapping[str, NDArray], several_runs: bool, several_sets: bool
) -> Group:
    rows = dict(predictions) if several_runs else {"prediction": examples.prediction}
    title = examples.title if several_sets else ""
    count = len(examples.image)

    def picture(start: int) -> Picture:
        chosen = range(start, min(start + MASK_COLUMNS, count))
        agree = ", ".join(f"{name} {100 * _accuracy(examples, values, chosen):.0f}%" for name, values in rows.items())
        return Picture(
            f"Images {start + 1} to {chosen[-1] + 1} of {count} with true and predicted masks. "
            f"Pixels predicted right: {agree}",
            lambda: plots.mask_grid(examples, rows, chosen, legend=False),
        )

    return Group(
        f"{title}: {', '.join(predictions)}" if title and several_runs else title,
        [picture(start) for start in range(0, count, MASK_COLUMNS)],
        plots.legend_entries(examples, list(rows.values())),
    )


def _accuracy(examples: SegmentationExamples, prediction: NDArray, chosen: range) -> float:
    truth = examples.mask[chosen.start : chosen.stop]
    right = (prediction[chosen.start : chosen.stop] == truth)[truth != VOID]
    return float(np.mean(right)) if len(right) else 0.0
