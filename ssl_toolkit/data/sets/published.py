"""What published data sets share: where they lie, fetching them on request, and holding out a validation part."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ssl_toolkit.data.base import DataConfig
from ssl_toolkit.data.layout import held_out
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import cache_dir


@dataclass
class PublishedConfig(DataConfig):
    """Options of a published data set of RGB images.

    Attributes:
        root: folder that holds it, or the unpacked folder itself.
    """

    root: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != 3:
            raise ValueError(f"mean has {len(self.mean)} channels, the images have 3")


@dataclass
class DownloadConfig(PublishedConfig):
    """Options of a published data set that torchvision can fetch.

    Attributes:
        root: folder that holds it, or the unpacked folder itself; None: ``datasets`` in the cache folder.
        download: fetch it from its publisher where it is not there. Nothing is ever fetched without this.
    """

    download: bool = False


MOST_CLASSES = 1_000_000


def numbered_classes(labels: NDArray[np.int64], where: str) -> tuple[str, ...]:
    """The classes ``"0"`` to the largest of ``labels``.

    Args:
        where: what holds the labels, for errors.

    Raises:
        UserError: a label is below 0 or so large that it numbers something else.
    """
    wrong = labels[(labels < 0) | (labels >= MOST_CLASSES)]
    if len(wrong):
        raise UserError(f"{where} holds the label {wrong[0]}: classes are 0, 1, ..., fewer than {MOST_CLASSES:,}")
    return tuple(str(number) for number in range(int(labels.max()) + 1))


def check_fraction(value: float) -> None:
    """Raise the ValueError of a schema unless ``0 <= value < 1``."""
    if not 0 <= value < 1:
        raise ValueError(f"val_fraction {value} must be at least 0 and below 1")


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and how it looks unpacked.

    Attributes:
        title: its name in messages.
        inner: the folder that its archive unpacks to.
        markers: what is in that folder if it is the right one.
        url: the publisher's page.
        fetch: downloads and unpacks it to ``<folder>/<inner>``; None where torchvision cannot.
    """

    title: str
    inner: str
    markers: tuple[str, ...]
    url: str
    fetch: Callable[[Path], object] | None = None

    def folder(self, root: str | None, download: bool = False) -> Path:
        """The unpacked folder: ``root/inner``, or ``root`` itself; fetched first where ``download`` says so.

        Raises:
            UserError: it is not there, it is incomplete, or the download failed.
        """
        if root is None and self.fetch is None:
            raise UserError(f"data.root is not set: say where {self.title} is with data.root=PATH ({self.url})")
        base = Path(root).expanduser() if root is not None else cache_dir() / "datasets"
        for folder in (base / self.inner, base):
            if all((folder / marker).exists() for marker in self.markers):
                return folder
        if not download or self.fetch is None:
            raise self._missing(base)
        self._download(base, self.fetch)
        return base / self.inner

    def _missing(self, base: Path) -> UserError:
        wanted = " and ".join(self.markers)
        how = "data.download=true fetches it, or " if self.fetch is not None else ""
        return UserError(
            f"no {self.title} in {base} (looked for {wanted} there and in {self.inner}/): {how}unpack the archive of "
            f"{self.url} there, or say where it is with data.root=PATH"
        )

    def _download(self, base: Path, fetch: Callable[[Path], object]) -> None:
        target = base / self.inner
        if target.exists():
            raise UserError(f"{target} is incomplete ({self.title} needs {', '.join(self.markers)}): remove it first")
        Console().print(f"downloading {self.title} to {target}", highlight=False, markup=False, soft_wrap=True)
        try:
            base.mkdir(parents=True, exist_ok=True)
            # Moved into place when whole: neither an interrupt nor a second process leaves half of it there.
            with tempfile.TemporaryDirectory(dir=base, prefix=".download-") as place:
                fetch(Path(place))
                whole = Path(place) / self.inner
                for archive in (*whole.glob("*.tgz"), *whole.glob("*.tar.gz")):
                    archive.unlink()
                try:
                    target.parent.mkdir(exist_ok=True)
                    whole.replace(target)
                except OSError:
                    if not target.is_dir():  # else another process was faster
                        raise
        except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot download {self.title} to {target}: {reason}; or get it from {self.url}") from error


def part_of_train(names: Sequence[str], fraction: float, split: str, where: Path) -> NDArray[np.int64]:
    """Positions, in order, of the publisher's training images that belong to ``split``.

    Args:
        names: of the images (the position as a decimal string where they have none); see `held_out`.
        fraction: share that is held out for val.
        where: the data, for errors.

    Raises:
        UserError: nothing is left for ``split``.
    """
    out = held_out(names, fraction)
    kept = [number for number, name in enumerate(names) if (name in out) == (split != "train")]
    if not kept:
        raise UserError(
            f"{where} has {len(names)} training images and data.val_fraction={fraction} leaves none for {split}: "
            "change it"
        )
    return np.array(kept, dtype=np.int64)


def spread(count: int) -> list[int]:
    """The first, the last and a few positions between, of ``count``: what is looked at where all would take long."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(count, 8))})


def check_present(folder: Path, files: Sequence[str], source: Path) -> None:
    """Raise a UserError if one of a few ``files``, which ``source`` lists, is not below ``folder``."""
    for number in spread(len(files)):
        if not (folder / files[number]).is_file():
            raise UserError(f"no {folder / files[number]}, which {source} lists: unpack the images again")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8; one that cannot be read is a UserError that names it."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """The rows of a text file with ``columns`` columns separated by spaces; lines that begin with ``#`` are skipped.

    Raises:
        UserError: the file cannot be read, is empty, or a line has another number of columns.
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        row = line.split()
        if not row or row[0].startswith("#"):
            continue
        if len(row) != columns:
            raise UserError(f"{path} line {number}: {len(row)} columns where there should be {columns}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty: unpack it again")
    return rows


def whole_numbers(values: Sequence[str], path: Path, low: int, high: int) -> NDArray[np.int64]:
    """``values`` of the file ``path`` as integers; one that is not from ``low`` to ``high`` is a UserError."""
    for value in values:
        if not value.lstrip("-").isdecimal() or not low <= int(value) <= high:
            raise UserError(f"{path} holds {value!r} where there should be a number from {low} to {high}")
    return np.array(values, dtype=np.int64)
