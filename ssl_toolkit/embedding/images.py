"""Which images are meant: those of a folder, a pattern, a list, or a single file."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssl_toolkit.data.decode import SUFFIXES
from ssl_toolkit.data.layout import find_images
from ssl_toolkit.data.sets.list_files import read_list
from ssl_toolkit.errors import UserError

LISTS = (".txt", ".csv", ".npy")


@dataclass(frozen=True)
class Images:
    """Image files, none of which was looked at yet.

    Attributes:
        root: what ``files`` are relative to.
        files: names as they are written beside the features.
    """

    root: Path
    files: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def path(self, row: int) -> Path:
        """Of image ``row``."""
        return self.root / self.files[row]

    def digest(self) -> str:
        """A hash of the names, sizes and times of change of all files."""
        digest = hashlib.sha256()
        for line in self._facts():
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _facts(self) -> Iterator[str]:
        for row, name in enumerate(self.files):
            try:
                stat = self.path(row).stat()
                yield f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0"
            except OSError:  # told of when it is read
                yield f"{name}\0-\0"


def find_all(given: str) -> Images:
    """The images that ``given`` names.

    Args:
        given: a folder (all images below it, hidden ones left out), a pattern (``photos/**/*.jpg``), a list (``.txt``,
            a path each line; ``.csv`` and ``.npy`` as `read_list` reads them; relative to its folder) or one image.

    Raises:
        UserError: there is nothing of that name, or no image in it.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        found = Images(path, find_images(path))
    elif path.is_file() and path.suffix.lower() in LISTS:
        found = Images(path.parent, [str(name) for name in read_list(path).paths])
    elif path.is_file():
        found = Images(path.parent, [path.name])
    elif set("*?[") & set(given):
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (absolute patterns too)
        found = Images(Path(), sorted(n for n in names if n.lower().endswith(SUFFIXES) and Path(n).is_file()))
    else:
        raise UserError(f"{given} does not exist: give a folder of images, a pattern in quotes, or a list of files")
    if not len(found):
        raise UserError(f"no images in {given} (looked for {' '.join(SUFFIXES)})")
    return found
