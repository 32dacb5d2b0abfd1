"""``ssl-toolkit data check``: what is in a folder of images, what is wrong with it, and a list of what is fine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ssl_toolkit import __version__
from ssl_toolkit.data.base import SPLITS
from ssl_toolkit.data.checking.decoding import FINE, Job, examine_all
from ssl_toolkit.data.checking.lists import (
    Found,
    check_writable,
    default_list,
    find,
    list_paths,
    printable,
    write_list,
)
from ssl_toolkit.data.layout import LABEL_MODES
from ssl_toolkit.errors import nearest
from ssl_toolkit.files import write_json
from ssl_toolkit.progress import progress_bar

SMALL = 32
"""Images with a side below this are counted."""


@dataclass
class CheckConfig:
    """Options of a check.

    Attributes:
        labels: of a folder, as for the data set ``folder``.
        root: what relative paths of a list start from; None: its folder.
        in_channels, bits: as the images will be decoded; see `ssl_toolkit.data.files.FileConfig`.
        workers: processes that decode; 0 decodes in this one, which a decoder that crashes then ends.
        duplicates: look for files with the same bytes.
        drop_duplicates: of the same bytes within a split, list the first file only.
        drop_across: leave out of the training list what val or test holds too, and of the val list what test holds.
        out: the clean list, ``.txt``; None takes ``NAME-clean.txt`` in the working folder.
        max_shown: files and groups of duplicates that are printed; the JSON file has all.
    """

    labels: str = "auto"
    root: str | None = None
    in_channels: int = 3
    bits: int = 8
    workers: int = 2
    duplicates: bool = True
    drop_duplicates: bool = True
    drop_across: bool = False
    out: str | None = None
    max_shown: int = 10

    def __post_init__(self) -> None:
        if self.labels not in LABEL_MODES:
            raise ValueError(f"unknown labels {self.labels!r}: {nearest(self.labels, LABEL_MODES)}")
        if self.in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, not {self.in_channels}")
        if self.bits not in (8, 16):
            raise ValueError(f"bits must be 8 or 16, not {self.bits}")
        if min(self.workers, self.max_shown) < 0:
            raise ValueError("workers and max_shown must not be negative")
        if self.out is not None and not self.out.endswith(".txt"):
            raise ValueError(f"out is a list and ends in .txt, not {self.out!r}")
        if self.drop_across and not self.duplicates:
            raise ValueError("drop_across needs duplicates=true: else nothing is known of them")


@dataclass
class Duplicates:
    """Files with the same bytes: their names, and whether they lie in several splits or classes."""

    files: list[str]
    across_splits: bool
    across_classes: bool


@dataclass
class SplitReport:
    """One split, or everything where there are none.

    Attributes:
        name: of the split, or empty.
        images, bytes: of all its files.
        unreadable: files that cannot be decoded.
        repeated: readable files whose bytes another file of the split has too, the first of each group not counted;
            None where they were not looked for.
        kept: images in the clean list.
        classes: images in the clean list by class; None without labels.
        clean_list: where the list is, or None where it would be empty.
    """

    name: str
    images: int
    bytes: int
    unreadable: int
    repeated: int | None
    kept: int
    classes: dict[str, int] | None
    clean_list: str | None = None


@dataclass
class Spread:
    """Smallest, middle and largest value."""

    min: int
    median: float
    max: int


@dataclass
class Report:
    """What a check found; as JSON this is the machine-readable report.

    Attributes:
        path: what was checked.
        options: of the check.
        splits: one entry per split.
        formats, channels, bits: number of readable images by what their files hold.
        width, height: in pixels, of upright readable images; None where there are none.
        below_32: images with a side below 32 pixels.
        unreadable: reason by file.
        unlistable: files whose name has a tab or a line break, which no list can hold.
        numbered: whether the lists hold the positions of classes in place of their names; see `Found`.
        duplicates: groups of readable files with the same bytes.
        measured_on: the split that ``mean`` and ``std`` were measured on, empty for all images.
        mean, std: per channel, in [0, 1] units, over the images of the clean list; each image counts the same, however
            large. None where there are none.
        json: where this report is.
        seconds: that reading and decoding took.
    """

    path: str
    options: dict[str, Any]
    splits: list[SplitReport]
    formats: dict[str, int]
    channels: dict[str, int]
    bits: dict[str, int]
    width: Spread | None
    height: Spread | None
    below_32: int
    unreadable: dict[str, str]
    unlistable: list[str]
    numbered: bool
    duplicates: list[Duplicates]
    measured_on: str
    mean: list[float] | None
    std: list[float] | None
    json: str = ""
    seconds: float = 0.0
    version: str = field(default=__version__)

    @property
    def fine(self) -> bool:
        """Whether every image is readable and no image lies in two splits."""
        return not self.unreadable and not any(group.across_splits for group in self.duplicates)


def check(path: Path, config: CheckConfig, console: Console) -> Report:
    """Decode every image below ``path`` and write the clean list (one per split) and the report beside it.

    Args:
        path: a folder, read as the data set ``folder`` reads it, or a list as the data set ``file_list`` reads it.

    Raises:
        UserError: no such path, no image, or the lists cannot be written.
    """
    out = Path(config.out).expanduser() if config.out is not None else default_list(path)
    check_writable(out.parent)
    with console.status(f"looking for images in {printable(str(path))}"):
        found = find(path, config.labels, config.root)
    targets = list_paths(out, found.splits, path)
    started = time.monotonic()
    job = Job(str(found.root.absolute()), config.in_channels, config.bits)
    with progress_bar("Checking", len(found.names), console=console) as bar:
        records, reasons = examine_all(found.names, job, config.workers, bar)
    seconds = time.monotonic() - started
    groups = find_duplicates(records) if config.duplicates else []
    kept = _kept(found, records, groups, config)
    report = _report(path, config, found, records, reasons, groups, kept)
    report.seconds = round(seconds, 3)
    for number, (split, target) in enumerate(zip(report.splits, targets)):
        if split.kept:
            write_list(target, found, np.flatnonzero(kept & (found.split == number)), path)
            split.clean_list = str(target)
    report.json = str(out.with_suffix(".json"))
    write_json(Path(report.json), dataclasses.asdict(report))
    return report


def find_duplicates(records: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Groups of two or more readable files with the same bytes (by a hash of 128 bits), each in order."""
    fine = np.flatnonzero(records["state"] == FINE)
    hashes = records["hash"][fine]
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: files of one hash stay in order
    changes = np.flatnonzero(np.any(hashes[order][1:] != hashes[order][:-1], axis=1)) + 1
    starts, ends = np.append(0, changes), np.append(changes, len(fine))
    several = ends - starts > 1
    groups = [fine[order[start:end]] for start, end in zip(starts[several], ends[several])]
    return sorted(groups, key=lambda group: int(group[0]))


def _kept(
    found: Found, records: NDArray[Any], groups: Sequence[NDArray[np.int64]], config: CheckConfig
) -> NDArray[np.bool_]:
    """Which files the clean lists hold, ``(N,)``."""
    kept = records["state"] == FINE
    kept[found.names.unlistable()] = False
    guarded = [found.splits.index(name) for name in reversed(SPLITS) if name in found.splits]
    for group in groups:
        group = group[kept[group]]
        splits = found.split[group]
        if config.drop_duplicates:
            firsts = np.unique(splits, return_index=True)[1]
            kept[np.delete(group, firsts)] = False
        if config.drop_across and guarded:
            holder = next((split for split in guarded if split in splits), None)
            kept[group[splits != holder]] = False
    return kept


def _report(
    path: Path,
    config: CheckConfig,
    found: Found,
    records: NDArray[Any],
    reasons: dict[int, str],
    groups: Sequence[NDArray[np.int64]],
    kept: NDArray[np.bool_],
) -> Report:
    fine = records[records["state"] == FINE]
    measured_on = "train" if "train" in found.splits else ""
    measured = records[kept & (found.split == found.splits.index(measured_on))] if measured_on else records[kept]
    mean, std = _mean_std(measured)
    splits = [_split_report(number, found, records, groups, kept) for number in range(len(found.splits))]
    if not config.duplicates:
        splits = [dataclasses.replace(split, repeated=None) for split in splits]
    return Report(
        path=str(path),
        options=dataclasses.asdict(config),
        splits=splits,
        formats=_counts(np.char.decode(fine["format"])),
        channels=_counts(fine["channels"]),
        bits=_counts(fine["bits"]),
        width=_spread(fine["width"]),
        height=_spread(fine["height"]),
        below_32=int(np.count_nonzero(np.minimum(fine["width"], fine["height"]) < SMALL)),
        unreadable={found.names[index]: reasons[index] for index in sorted(reasons)},
        unlistable=[found.names[index] for index in found.names.unlistable()],
        numbered=found.numbered,
        duplicates=[_described(found, group) for group in groups],
        measured_on=measured_on,
        mean=mean,
        std=std,
    )


def _described(found: Found, group: NDArray[np.int64]) -> Duplicates:
    labels = np.unique(found.label[group])
    several = np.count_nonzero(labels >= 0) > 1
    return Duplicates([found.names[index] for index in group], len(np.unique(found.split[group])) > 1, bool(several))


def _split_report(
    number: int, found: Found, records: NDArray[Any], groups: Sequence[NDArray[np.int64]], kept: NDArray[np.bool_]
) -> SplitReport:
    mine = found.split == number
    inside = (int(np.count_nonzero(mine[group])) for group in groups)
    label = found.label[mine & kept]
    counts = np.bincount(label[label >= 0], minlength=len(found.classes))
    labelled = bool(np.any(found.label[mine] >= 0))
    return SplitReport(
        name=found.splits[number],
        images=int(np.count_nonzero(mine)),
        bytes=int(records["bytes"][mine].sum()),
        unreadable=int(np.count_nonzero(mine & (records["state"] != FINE))),
        repeated=sum(max(0, count - 1) for count in inside),
        kept=int(np.count_nonzero(mine & kept)),
        classes=dict(zip(found.classes, counts.tolist())) if labelled else None,
    )


def _counts(values: NDArray[Any]) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    names, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(names[i]): int(counts[i]) for i in order}


def _spread(values: NDArray[np.int32]) -> Spread | None:
    return Spread(int(values.min()), float(np.median(values)), int(values.max())) if len(values) else None


def _mean_std(records: NDArray[Any]) -> tuple[list[float] | None, list[float] | None]:
    """Per channel: the mean of the images' means, and the deviation of pixels with every image weighed the same."""
    if len(records) == 0:
        return None, None
    mean = records["mean"].mean(axis=0)
    variance = records["mean_square"].mean(axis=0) - mean**2
    return mean.tolist(), np.sqrt(np.maximum(variance, 0)).tolist()
