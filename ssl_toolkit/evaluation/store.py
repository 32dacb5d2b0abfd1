"""Features on disk: written row by row, mapped into memory, kept until room is needed.

A folder for each backbone, split and preparation holds one ``.npy`` file for each part (bfloat16 as int16 with the same
bits) and says which rows are there. Rows are written by plain writes, since a mapping of a file for which the disk has
no room kills the process; they count as there once the disk has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import Part, Values
from ssl_toolkit.evaluation.reading import Rows
from ssl_toolkit.files import read_json, write_json

FORMAT = 1
"""Changes when the files or what is computed for them do: what other versions wrote is not read."""
KEEP_SECONDS = 20.0
"""Between times when written rows are made to count."""

META, DONE = "features.json", "done-{}.json"

Mask = NDArray[np.bool_]


class Store:
    """The features of all backbones and data under one folder.

    Args:
        folder: may not exist yet.
        limit: bytes that all entries may take; beyond it those that were not used for longest are removed.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self._used: set[str] = set()

    def entry(self, identity: Mapping[str, Any], length: int) -> Entry:
        """The features of ``length`` images that ``identity`` tells from all others; it is not removed from now on."""
        text = json.dumps({"format": FORMAT, "images": length, **identity}, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        self._used.add(key)
        return Entry(self.folder / key, identity, length)

    def make_room(self, size: int) -> None:
        """Remove entries until ``size`` more bytes are within the limit.

        Raises:
            OSError: they cannot be, or the disk has no room for them.
        """
        if not size:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = sorted(self._entries(), key=lambda entry: entry[1])
        total = sum(entry[2] for entry in entries)
        for folder, _, taken in entries:
            if total + size <= self.limit:
                break
            if folder.name not in self._used and _remove(folder):
                total -= taken
        if total + size > self.limit:
            raise OSError(f"they take {(size + total) / 1e9:.3g} GB, features.disk_gb is {self.limit / 1e9:g}")
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise OSError(f"they take {size / 1e9:.3g} GB, the disk of {self.folder} has {free / 1e9:.3g} GB free")

    def _entries(self) -> Iterator[tuple[Path, float, int]]:
        """Folder, time of last use and bytes of each entry."""
        for meta in self.folder.glob(f"*/{META}"):
            try:
                taken = sum(_taken(path) for path in meta.parent.iterdir())
                yield meta.parent, meta.stat().st_mtime, taken
            except OSError:  # another evaluation removed it just now
                continue


class Entry:
    """The features of one split.

    Args:
        folder: of its files.
        identity: what they are features of, for people.
        length: images.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], length: int) -> None:
        self.folder, self.identity, self.length = folder, identity, length

    def lock(self) -> Lock:
        """To be held while files are made or removed. Its file lies beside the folder, which may be removed."""
        return Lock(self.folder.parent / f"{self.folder.name}.lock")

    def done(self, parts: Sequence[Part]) -> dict[str, Mask]:
        """Which rows of each part are there, each ``(length,)``."""
        told = self._told()
        none = np.zeros(self.length, dtype=bool)
        return {part.name: told.get(part.stored, none) if self._fits(part) else none for part in parts}

    def prepare(self, parts: Sequence[Part]) -> dict[str, Mask]:
        """Make files for those of ``parts`` that have none; which rows are there.

        Raises:
            OSError, UserError: the folder cannot be written, or the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self.done(parts)
        self._tell("all", {**self._told(), **{part.stored: done[part.name] for part in parts}})
        for path in self.folder.glob(DONE.format("[0-9]*")):
            path.unlink()
        for part in parts:
            if not self._fits(part):
                _create(self._path(part), part, self.length)
        write_json(self.folder / META, {"format": FORMAT, "of": self.identity, "images": self.length})
        return done

    def writer(self, parts: Sequence[Part], process: int) -> Writer:
        """Writes rows of ``parts``, for one of the processes that share an entry."""
        files = {part.name: self._path(part).open("r+b", buffering=0) for part in parts}
        stored = {part.name: part.stored for part in parts}

        def tell(done: Mapping[str, Mask]) -> None:
            self._tell(str(process), {stored[name]: rows for name, rows in done.items()})

        return Writer(files, self.length, tell)

    def mapped(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """The parts as tensors that are read from their files when touched; what is written into them stays here."""
        return {part.name: _tensor(np.load(self._path(part), mmap_mode="c"), part) for part in parts}

    def missing_bytes(self, parts: Sequence[Part]) -> int:
        """What the disk has yet to hold."""
        return sum(int((~rows).sum()) * part.bytes_per_image for part, rows in zip(parts, self.done(parts).values()))

    def touch(self) -> None:
        """Note that it was used just now."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / META)

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, part: Part) -> Path:
        return self.folder / f"{part.stored}.npy"

    def _fits(self, part: Part) -> bool:
        """Whether the file of a part is there and made for it."""
        try:
            found = np.load(self._path(part), mmap_mode="r")
        except (OSError, ValueError, EOFError):  # not there, or damaged
            return False
        return found.shape == (self.length, *part.shape) and found.dtype == _stored(part.dtype)

    def _told(self) -> dict[str, Mask]:
        """What all processes told of, by part."""
        found: dict[str, Mask] = {}
        for path in self.folder.glob(DONE.format("*")):
            try:
                for name, pairs in read_json(path).items():
                    rows = found.setdefault(name, np.zeros(self.length, dtype=bool))
                    for start, stop in pairs:
                        rows[int(start) : int(stop)] = True
            except (UserError, AttributeError, TypeError, ValueError):  # damaged: its rows are computed again
                continue
        return found

    def _tell(self, who: str, done: Mapping[str, Mask]) -> None:
        write_json(self.folder / DONE.format(who), {name: ranges(rows) for name, rows in done.items()})


class Lock:
    """Held by one evaluation at a time; the system frees it when its process ends."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, FileLock(path)

    def taken(self) -> bool:
        """Take it if it is free; whether it is held now.

        Raises:
            OSError: the folder cannot be written, or has no locks.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Free it, if it is held."""
        self._lock.release()


class Writer:
    """Writes rows into the files of an entry; every `KEEP_SECONDS` those written so far are made to count.

    Args:
        files: by part, open for writing, unbuffered.
        tell: notes which rows of which part are there.
    """

    def __init__(self, files: Mapping[str, BinaryIO], length: int, tell: Callable[[Mapping[str, Mask]], None]) -> None:
        self._files, self._tell = files, tell
        self._starts = {name: _header_size(file) for name, file in files.items()}
        self._written = {name: np.zeros(length, dtype=bool) for name in files}
        self._kept = time.monotonic()

    def put(self, rows: Rows, values: Values) -> None:
        """Write consecutive rows.

        Raises:
            OSError: the disk is full or gone.
        """
        for name, value in values.items():
            numbers = np.ascontiguousarray(_array(value))
            self._files[name].seek(self._starts[name] + int(rows[0]) * (numbers.nbytes // len(rows)))
            left = numbers.reshape(-1).view(np.uint8).data
            while left:
                left = left[self._files[name].write(left) :]
            self._written[name][rows] = True
        if time.monotonic() - self._kept > KEEP_SECONDS:
            self.keep()

    def keep(self) -> None:
        """Make what was written count."""
        for file in self._files.values():
            os.fsync(file.fileno())
        self._tell(self._written)
        self._kept = time.monotonic()

    def close(self) -> None:
        """`keep`, and close the files."""
        try:
            self.keep()
        finally:
            for file in self._files.values():
                file.close()


def ranges(rows: Mask) -> list[list[int]]:
    """``[start, stop)`` of each run of true values."""
    edges = np.flatnonzero(np.diff(rows.astype(np.int8), prepend=0, append=0))
    pairs: list[list[int]] = edges.reshape(-1, 2).tolist()
    return pairs


def _stored(dtype: torch.dtype) -> np.dtype[Any]:
    names = {torch.float32: "<f4", torch.bfloat16: "<i2", torch.uint8: "|u1"}
    return np.dtype(names[dtype])


def _array(value: Tensor) -> NDArray[Any]:
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def _tensor(array: NDArray[Any], part: Part) -> Tensor:
    return torch.from_numpy(array).view(part.dtype)


def _create(path: Path, part: Part, length: int) -> None:
    """A file of the right size that takes no room yet where the file system knows holes."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        header = {"descr": _stored(part.dtype).str, "fortran_order": False, "shape": (length, *part.shape)}
        np.lib.format.write_array_header_2_0(file, header)
        file.truncate(file.tell() + length * part.bytes_per_image)


def _header_size(file: BinaryIO) -> int:
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_2_0(file)
    return file.tell()


def _taken(path: Path) -> int:
    """Bytes of a file on the disk; a hole takes none."""
    stat = path.stat()
    return stat.st_blocks * 512 if hasattr(stat, "st_blocks") else stat.st_size


def _remove(folder: Path) -> bool:
    """Remove an entry that no other evaluation works on; whether it could be."""
    entry = Entry(folder, {}, 0)
    lock = entry.lock()
    if not lock.taken():
        return False
    entry.remove()
    lock.release()
    return not folder.exists()
