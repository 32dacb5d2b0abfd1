"""What of an embedding is done: a folder beside the file to be, with a part for each stretch of rows."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path, clear_leftovers, read_json, write_json

IDENTITY = "embedding.json"
ROWS, UNREADABLE = "rows", "unreadable"


@dataclass(frozen=True)
class Part:
    """A stretch of rows that is done.

    Attributes:
        rows: ``(n,)``, of the images that were read.
        values: ``features`` ``(n, D)`` and perhaps ``maps`` ``(n, C, H, W)``; empty where none was read.
        unreadable: row and reason of the others.
    """

    rows: NDArray[np.int64]
    values: dict[str, NDArray[Any]]
    unreadable: list[tuple[int, str]]


class Parts:
    """The parts of one embedding.

    Args:
        out: the file that they will be joined to.
        identity: all that features depend on; parts of another one are not taken.
        count: of images.
        size: rows of a part.

    Raises:
        UserError: there are parts of another embedding.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], count: int, size: int) -> None:
        self.folder = out.with_name(f"{out.name}.parts")
        self.stretches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        wanted = json.loads(json.dumps({**identity, "count": count, "part": size}))
        if (self.folder / IDENTITY).is_file():
            found = read_json(self.folder / IDENTITY)
            other = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
            if other:
                raise UserError(
                    f"{self.folder} holds parts of another embedding ({', '.join(other)} differ): remove it, or choose "
                    "another out"
                )
            clear_leftovers(self.folder)
        else:
            write_json(self.folder / IDENTITY, wanted)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.npz"

    def missing(self) -> list[int]:
        """Numbers of the parts that are to be done."""
        return [number for number in range(len(self.stretches)) if not self._path(number).is_file()]

    def rows_done(self) -> int:
        """Images of the parts that are there."""
        missing = set(self.missing())
        return sum(len(rows) for number, rows in enumerate(self.stretches) if number not in missing)

    def write(self, number: int, part: Part) -> None:
        """Keep a part."""
        why = json.dumps(part.unreadable)
        with atomic_path(self._path(number)) as temporary:
            np.savez(temporary, rows=part.rows, unreadable=np.array(why), **part.values)  # type: ignore[arg-type]

    def read(self, number: int) -> Part:
        """A part that is there.

        Raises:
            UserError: it is damaged.
        """
        path = self._path(number)
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            unreadable = [(int(row), str(reason)) for row, reason in json.loads(str(found.pop(UNREADABLE)))]
            return Part(found.pop(ROWS), found, unreadable)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete it, and the same command computes it again"
            ) from error

    def remove(self) -> None:
        """Delete them all."""
        shutil.rmtree(self.folder, ignore_errors=True)
