"""Reading lists of images: ``.txt``, ``.csv`` and ``.npy``."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.base import SPLITS
from ssl_toolkit.data.sets.published import MOST_CLASSES
from ssl_toolkit.errors import UserError, nearest

SUFFIXES = (".txt", ".csv", ".npy")

NUMBER = re.compile(r"0|-?[1-9][0-9]*")
"""Labels that are numbers: ``007`` is a name."""

_ENDS_IN_INTEGER = re.compile(r".*\s-?\d+", re.DOTALL).fullmatch


@dataclass(frozen=True)
class Listing:
    """What a list file says.

    Attributes:
        source: the file.
        paths: as written in it.
        labels: as written (integers where the file has numbers), or None.
        splits: of each path, or None.
        numbers: line (of ``.npy``: position from 0) of each path, for errors.
    """

    source: Path
    paths: list[str]
    labels: list[str] | NDArray[np.int64] | None = None
    splits: list[str] | None = None
    numbers: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, row: int) -> str:
        """``"train.txt line 7"``."""
        word = "entry" if self.source.suffix.lower() == ".npy" else "line"
        return f"{self.source} {word} {self.numbers[row]}"

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Listing:
        """The list of these rows alone."""
        labels = self.labels
        return replace(
            self,
            paths=[self.paths[i] for i in rows],
            labels=labels[np.asarray(rows)] if isinstance(labels, np.ndarray) else labels and [labels[i] for i in rows],
            splits=self.splits and [self.splits[i] for i in rows],
            numbers=[self.numbers[i] for i in rows],
        )


def read_list(path: Path, labels_file: Path | None = None) -> Listing:
    """The list in ``path``, by its suffix.

    ``.txt``: a path per line, then nothing, or a TAB and a label, or, if every line has one, whitespace and an integer;
    blank lines and those that begin with ``#`` are skipped. ``.csv``: a header with ``path`` and, if wanted, ``label``
    and ``split`` (train, val or test). ``.npy``: an array of strings, its labels in ``labels_file``. Labels that are
    all integers are numbers of classes; one with leading zeros (``007``) is a name.

    Raises:
        UserError: another suffix, a file that cannot be read or is empty, or a line that is none of the above.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path} is no list of images: a list is {', '.join(SUFFIXES)}")
    if labels_file is not None and suffix != ".npy":
        raise UserError(f"data.labels_file is for .npy lists: {path} has its labels in itself")
    try:
        listing = {".txt": _read_txt, ".csv": _read_csv}[suffix](path) if suffix != ".npy" else _read_npy(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not len(listing):
        raise UserError(f"{path} names no images")
    if labels_file is not None:
        return replace(listing, labels=_read_labels(labels_file, listing))
    return listing


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):  # PowerShell's > writes it
            raise UserError(f"{path} is UTF-16: save it as UTF-8")
    # utf-8-sig: Excel and Notepad write a byte order mark. Names that are no UTF-8 pass as they are.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from file


def _read_txt(path: Path) -> Listing:
    lines = [line.strip(" \r\n") for line in _lines(path)]
    numbers = [i for i, line in enumerate(lines, 1) if line and line[0] != "#" and not line.isspace()]
    if len(numbers) < len(lines):
        lines = [lines[i - 1] for i in numbers]
    listing = Listing(path, lines, numbers=numbers)
    if any("\t" in line for line in lines):
        pairs = [line.rpartition("\t") if "\t" in line else (line, "", "") for line in lines]
        listing = replace(listing, paths=[pair[0].strip() for pair in pairs])
        if "" in listing.paths:
            raise UserError(f"{listing.where(listing.paths.index(''))} has no path")
        return _with_labels(listing, [pair[2].strip() for pair in pairs])
    if lines and all(map(_ENDS_IN_INTEGER, lines)):
        parts = [line.rsplit(maxsplit=1) for line in lines]
        return _with_labels(replace(listing, paths=[part[0] for part in parts]), [part[1] for part in parts])
    return listing


def _read_csv(path: Path) -> Listing:
    rows = csv.reader(_lines(path))
    table, numbers = [], []
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        for row in rows:
            if any(row):
                table.append(row)
                numbers.append(rows.line_num)
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num} is not CSV: {error}") from error
    if "path" not in header:
        there = ", ".join(map(repr, header)) or "an empty one"
        raise UserError(f"{path} has no column 'path' in its first line, only {there}; columns are separated by commas")
    short = next((i for i, row in enumerate(table) if len(row) != len(header)), None)
    if short is not None:
        raise UserError(f"{path} line {numbers[short]}: {len(table[short])} values for {len(header)} columns")
    columns = {name: [row[at].strip() for row in table] for at, name in enumerate(header) if name in _COLUMNS}
    listing = Listing(path, columns["path"], numbers=numbers)
    if "" in listing.paths:
        raise UserError(f"{listing.where(listing.paths.index(''))} has no path")
    strange = next((i for i, name in enumerate(columns.get("split", ())) if name not in SPLITS), None)
    if strange is not None:
        name = columns["split"][strange]
        raise UserError(f"{listing.where(strange)}: unknown split {name!r}: {nearest(name, SPLITS)}")
    listing = replace(listing, splits=columns.get("split"))
    return _with_labels(listing, columns["label"]) if "label" in columns else listing


_COLUMNS = ("path", "label", "split")


def is_class_number(label: str) -> bool:
    """Whether a list with this label has it as the number of a class."""
    return NUMBER.fullmatch(label) is not None and 0 <= int(label) < MOST_CLASSES


def _with_labels(listing: Listing, labels: list[str]) -> Listing:
    """With ``labels`` as integers where all are plain ones (``7``, not ``007``); without any where all are empty."""
    if not any(labels):
        return listing
    if "" in labels:
        raise UserError(f"{listing.where(labels.index(''))} has no label, other lines have: label all or none")
    if not all(map(NUMBER.fullmatch, labels)):
        return replace(listing, labels=labels)
    try:
        return replace(listing, labels=np.array([int(label) for label in labels], dtype=np.int64))
    except OverflowError as error:
        raise UserError(f"{listing.source}: {max(labels, key=len)} is no label: classes are 0, 1, ...") from error


def _load(path: Path, what: str) -> NDArray:
    """An array from a ``.npy`` file, never a pickled one."""
    try:
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise UserError(f"{path} is not an array of NumPy: save {what} with np.save")
            file.seek(0)
            return np.load(file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, SyntaxError) as error:
        if "bject arrays" in str(error):
            raise UserError(
                f"{path} holds pickled objects, which are not opened: if you trust it, convert it once with "
                f"a = np.load({path.name!r}, allow_pickle=True); np.save({path.name!r}, np.array(a.tolist()))"
            ) from error
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def _read_npy(path: Path) -> Listing:
    values = _load(path, "an array of paths")
    if values.ndim != 1 or values.dtype.kind not in "US":
        raise UserError(
            f"{path} holds values of type {values.dtype} in the shape {values.shape}: a list of paths is flat strings"
        )
    paths = [os.fsdecode(name) for name in values.tolist()]
    if "" in paths:
        raise UserError(f"{path} entry {paths.index('')} has no path")
    return Listing(path, paths, numbers=range(len(paths)))


def _read_labels(path: Path, listing: Listing) -> NDArray[np.int64]:
    values = _load(path, "an array of integers")
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(f"{path} holds {values.dtype} in the shape {values.shape}: labels are a flat array of integers")
    if len(values) != len(listing):
        raise UserError(f"{path} holds {len(values)} labels for the {len(listing)} paths in {listing.source}")
    return values.astype(np.int64)
