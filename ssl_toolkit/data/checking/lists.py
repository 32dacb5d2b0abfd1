"""The files that ``ssl-toolkit data check`` looks at, and the lists it writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit import __version__
from ssl_toolkit.data.base import SPLITS
from ssl_toolkit.data.layout import Layout
from ssl_toolkit.data.sets.list_files import NUMBER, SUFFIXES, is_class_number, read_list
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path


class Names:
    """Paths, packed: a list of a million strings would take three times the memory."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int | np.integer) -> str:
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])

    def unlistable(self) -> NDArray[np.int64]:
        """Positions of those with a tab or a line break, which a list of files cannot hold."""
        breaks = (b"\t", b"\n", b"\r")
        if not any(character in self._bytes for character in breaks):
            return np.zeros(0, dtype=np.int64)
        encoded = (os.fsencode(self[index]) for index in range(len(self)))
        return np.flatnonzero([any(character in name for character in breaks) for name in encoded])


@dataclass
class Found:
    """The images of a folder or list, before any is opened.

    Attributes:
        root: what relative names start from.
        names: of the files.
        splits: names of the splits, ``("",)`` where there are none.
        split: ``(N,)``, positions in ``splits``.
        classes: names of the classes of all splits.
        label: ``(N,)``, positions in ``classes``, -1 for none.
        numbered: lists give classes their positions, for as names they would be numbers that no class can have.
    """

    root: Path
    names: Names
    splits: tuple[str, ...]
    split: NDArray[np.int8]
    classes: tuple[str, ...]
    label: NDArray[np.int32]
    numbered: bool = False

    def path(self, index: int | np.integer) -> str:
        """The absolute path of a file."""
        return os.path.join(self.root.absolute(), self.names[index])  # noqa: PTH118 (a million of them)


def find(path: Path, labels: str, root: str | None = None) -> Found:
    """The files to check.

    Args:
        path: a folder or a list.
        labels: of a folder; see `ssl_toolkit.data.layout.Layout`.
        root: what relative paths of a list start from; None: its folder.

    Raises:
        UserError: there is no such path, it is neither a folder nor a list, or it names no image.
    """
    if path.is_dir():
        return _find_in_folder(path, labels)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a folder of images or a list of files ({', '.join(SUFFIXES)})")
    listing = read_list(path)
    splits = tuple(split for split in SPLITS if split in (listing.splits or ())) or ("",)
    names = listing.splits or [""] * len(listing)
    split = np.fromiter(map(splits.index, names), dtype=np.int8, count=len(listing))
    classes: dict[str, int] = {}
    written = listing.labels if listing.labels is not None else ()
    label = np.array([classes.setdefault(str(name), len(classes)) for name in written], dtype=np.int32)
    start = path.parent if root is None else Path(root).expanduser()
    if listing.labels is None:
        label = np.full(len(listing), -1, dtype=np.int32)
    return Found(start, Names(listing.paths), splits, split, tuple(classes), label)


def _find_in_folder(root: Path, labels: str) -> Found:
    names: list[str] = []
    split: list[NDArray[np.int8]] = []
    label: list[NDArray[np.int32]] = []
    classes: dict[str, int] = {}
    try:
        layout = Layout(root, labels, 0.0)
        for number, name in enumerate(layout.splits or ["train"]):
            part = layout.part(name)
            prefix = f"{name}/" if layout.splits else ""
            names += [prefix + file for file in part.files]
            split.append(np.full(len(part.files), number, dtype=np.int8))
            for known in part.classes or ():
                classes.setdefault(known, len(classes))
            ids = (classes[file.split("/", 1)[0]] if part.classes else -1 for file in part.files)
            label.append(np.fromiter(ids, dtype=np.int32, count=len(part.files)))
    except UserError as error:
        raise UserError(str(error).replace("data.root=", "").replace("data.labels=", "labels=")) from error
    splits = tuple(layout.splits) or ("",)
    numbered = bool(classes) and all(map(NUMBER.fullmatch, classes)) and not all(map(is_class_number, classes))
    return Found(root, Names(names), splits, np.concatenate(split), tuple(classes), np.concatenate(label), numbered)


def default_list(path: Path) -> Path:
    """``NAME-clean.txt`` in the working folder for what is checked."""
    whole = Path(os.path.abspath(path))  # noqa: PTH100 (resolves no links)
    return Path(f"{(whole.name if path.is_dir() else whole.stem) or 'images'}-clean.txt")


def check_writable(folder: Path) -> None:
    """Raise a `UserError` if the lists cannot go there, before hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}: say where the lists go with out=FILE.txt")


def list_paths(out: Path, splits: Sequence[str], path: Path) -> list[Path]:
    """Where the list of each split goes: ``out`` itself for the split without a name.

    Raises:
        UserError: one of them is ``path``, which is to be checked.
    """
    targets = [out.with_stem(f"{out.stem}-{split}") if split else out for split in splits]
    for target in targets:
        if target.exists() and target.samefile(path):
            raise UserError(f"{target} is the list to be checked: choose another name with out=FILE.txt")
    return targets


def write_list(target: Path, found: Found, indices: NDArray[np.int64], path: Path) -> None:
    """Absolute paths, one a line, each with a tab and its class where there are labels.

    Raises:
        UserError: ``target`` cannot be written.
    """
    classes = found.classes if not found.numbered else [str(number) for number in range(len(found.classes))]
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"# ssl-toolkit {__version__} data check {printable(str(path))}: {len(indices)} images\n")
        for index in indices:
            label = found.label[index]
            file.write(found.path(index) + (f"\t{classes[label]}\n" if label >= 0 else "\n"))


def printable(name: str) -> str:
    """A file name on one line that any terminal takes."""
    return name.encode("utf-8", "backslashreplace").decode().translate({9: r"\t", 10: r"\n", 13: r"\r"})
