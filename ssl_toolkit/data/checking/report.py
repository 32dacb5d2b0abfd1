"""The findings of ``ssl-toolkit data check`` for a person."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ssl_toolkit.data.checking.check import Duplicates, Report, SplitReport, Spread
from ssl_toolkit.data.checking.lists import printable

_KINDS = {"1": "gray", "2": "gray and alpha", "3": "colour", "4": "with alpha, or CMYK"}


def print_report(report: Report, console: Console, max_shown: int) -> None:
    """All tables; of files and groups the first ``max_shown``."""
    console.print(_splits(report.splits))
    console.print(_properties(report))
    if any(split.classes for split in report.splits):
        console.print(_classes(report.splits))
    if report.unreadable:
        console.print(_unreadable(report.unreadable, max_shown))
    if report.duplicates:
        _print_duplicates(report, console, max_shown)
    for note in notes(report):
        console.print(Text(f"note: {note}"), soft_wrap=True)
    if report.mean is not None and report.std is not None:
        which = f"the {report.measured_on} images" if report.measured_on else "the images"
        line = (
            f"\n{measured(report)}\n(in [0, 1] units, over {which} of the clean list: the mean of the images' means, "
            "and the standard deviation of their pixels with each image weighing the same)"
        )
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def measured(report: Report) -> str:
    """``"data.mean=[0.1,0.2,0.3] data.std=[...]"``, empty where nothing could be measured."""
    if report.mean is None or report.std is None:
        return ""
    std = ",".join(f"{max(value, 1e-4):.4f}" for value in report.std)  # 0, of flat images, is no divisor
    mean = ",".join(f"{value:.4f}" for value in report.mean)
    return f"data.mean=[{mean}] data.std=[{std}]"


def notes(report: Report) -> list[str]:
    """What a person should know, one line each."""
    lines = []
    for split in report.splits:
        few = [name for name, count in (split.classes or {}).items() if count < 2]
        if few and split.name in ("", "train"):
            named = f"{printable(', '.join(few[:5]))}{', ...' if len(few) > 5 else ''}"
            lines.append(f"classes with fewer than 2 images{_of(split)}: {len(few):,} ({named})")
        if not split.kept:
            lines.append(f"no image is left{_of(split)}: no list is written")
    channels, in_channels = report.channels, report.options["in_channels"]
    if in_channels == 3 and set(channels) <= {"1", "2"} and channels:
        lines.append(
            "all images are gray: data.in_channels=1 reads them as one channel (check them with in_channels=1)"
        )
    if in_channels in (1, 3) and "4" in channels:
        lines.append(f"images with four channels, of which CMYK is converted and alpha dropped: {channels['4']:,}")
    deep = sum(count for bits, count in report.bits.items() if int(bits) > 8)
    if deep and report.options["bits"] == 8:
        lines.append(f"images of more than 8 bits: {deep:,}; data.bits=16 keeps their precision (check with bits=16)")
    if report.path.lower().endswith(".npy"):
        lines.append("labels of a .npy list are in a file of their own: the clean list has none")
    if report.numbered:
        lines.append("class names are numbers that no class can have: the lists number the classes from 0")
    if report.unlistable:
        lines.append(f"names with tabs or line breaks, which no list can hold: {len(report.unlistable):,}; rename them")
    return lines


def _of(split: SplitReport) -> str:
    return f" in {split.name}" if split.name else ""


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def size(count: float) -> str:
    """``"1.2 GB"``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _splits(splits: Sequence[SplitReport]) -> Table:
    table = _table("", "images", "size", "unreadable", "repeated", "in the clean list")
    for split in splits:
        row = [
            f"{split.images:,}",
            size(split.bytes),
            f"{split.unreadable:,}",
            "-" if split.repeated is None else f"{split.repeated:,}",
            f"{split.kept:,}",
        ]
        table.add_row(split.name or "all", *row)
    return table


def _properties(report: Report) -> Table:
    table = _table("readable images", "", title=None)
    table.columns[1].justify = "left"
    table.add_row("format", _listed(report.formats.items()))
    table.add_row(
        "channels", _listed((f"{n} ({_KINDS[n]})" if n in _KINDS else n, c) for n, c in report.channels.items())
    )
    table.add_row("bits", _listed(report.bits.items()))
    table.add_row("width", _spread(report.width))
    table.add_row("height", _spread(report.height))
    table.add_row("a side below 32 px", f"{report.below_32:,}")
    return table


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts) or "none"


def _spread(values: Spread | None) -> str:
    return "none" if values is None else f"{values.min} to {values.max} px, median {values.median:g}"


def _classes(splits: Sequence[SplitReport]) -> Table:
    table = _table("images per class", "classes", "smallest", "median", "largest")
    for split in splits:
        if split.classes:
            counts = sorted((count, name) for name, count in split.classes.items())
            ends = (Text(f"{count:,} ({printable(name)})", overflow="fold") for count, name in (counts[0], counts[-1]))
            smallest, largest = ends
            median = f"{statistics.median(split.classes.values()):g}"
            table.add_row(split.name or "all", f"{len(counts):,}", smallest, median, largest)
    return table


def _unreadable(reasons: dict[str, str], shown: int) -> Table:
    table = _table("unreadable", "why", title=None)
    table.columns[1].justify = "left"
    for name, reason in list(reasons.items())[:shown]:
        table.add_row(Text(printable(name)), Text(reason))
    if len(reasons) > shown:
        table.add_row(f"and {len(reasons) - shown:,} more", "")
    return table


def _print_duplicates(report: Report, console: Console, shown: int) -> None:
    groups = report.duplicates
    files = sum(len(group.files) for group in groups)
    console.print(f"{files:,} files have the bytes of another one ({_count(len(groups), 'group')})", highlight=False)
    remedy = (
        "left out of the lists" if report.options["drop_across"] else "drop_across=true leaves them out of training"
    )
    loud = (
        ("SPLITS", remedy, [group for group in groups if group.across_splits]),
        ("CLASSES", "at most one label is right", [group for group in groups if group.across_classes]),
    )
    for what, line, found in loud:
        if found:
            title = Text(f"THE SAME IMAGE IN SEVERAL {what}: {_count(len(found), 'group')}")
            body = _groups(found, shown).append(f"\n{line}", style="bold")
            console.print(Panel(body, title=title, title_align="left", border_style="bold red"))
    rest = [group for group in groups if not (group.across_splits or group.across_classes)]
    if rest:
        console.print(_groups(rest, shown))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _groups(groups: Sequence[Duplicates], shown: int) -> Text:
    lines = [
        " = ".join(map(printable, group.files[:4])) + (" = ..." if len(group.files) > 4 else "") for group in groups
    ]
    more = [f"and {len(lines) - shown:,} more groups"] if len(lines) > shown else []
    return Text("\n".join([*lines[:shown], *more]), overflow="fold")
