"""Tar files of samples, as WebDataset writes them: what is in them, and reading a member from anywhere."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.decode import ARRAY_SUFFIX, SUFFIXES
from ssl_toolkit.data.sets.packed import Arrays, cached_arrays, file_key
from ssl_toolkit.data.sets.published import MOST_CLASSES
from ssl_toolkit.errors import UserError
from ssl_toolkit.progress import Bar, progress_bar

EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in (*SUFFIXES, ARRAY_SUFFIX))
"""Of image members; the first of these that a sample has is its image."""

NO_LABEL = -1

_FORMAT = "1"
_OPEN_FILES = 64
_BLOCK = 512


class Member(NamedTuple):
    """A file in a tar: its extension (all after the first dot), and where its bytes are."""

    extension: str
    offset: int
    size: int


class Index(NamedTuple):
    """The images of a list of shards.

    Attributes:
        names: ``(N,)`` bytes, the name of each image in its shard.
        shards: ``(N,)`` int64, positions in the list of shards.
        offsets, sizes: ``(N,)`` int64, bytes.
        labels: ``(N,)`` int64, `NO_LABEL` where there is none.
    """

    names: NDArray[np.bytes_]
    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]


def split_name(name: str) -> tuple[str, str]:
    """Key and extension: ``a/b.seg.png`` is ``a/b`` and ``seg.png``."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def expand(option: str, value: str) -> list[Path]:
    """The tar files that ``value`` means: paths, globs and braces (``train-{000..009}.tar``), separated by commas; of a
    folder the ``*.tar`` in it.

    Raises:
        UserError: one of them is not there, two are the same, or the braces are empty.
    """
    paths: list[Path] = []
    for pattern in re.split(r",(?![^{]*\})", value):
        for name in _braces(str(Path(pattern.strip()).expanduser())):
            if Path(name).is_dir():
                found = sorted(glob.glob(os.path.join(glob.escape(name), "*.tar")))  # noqa: PTH118, PTH207
            else:
                found = [name] if Path(name).is_file() else sorted(glob.glob(name, recursive=True))  # noqa: PTH207
            if not found:
                raise UserError(f"{option}: there is no {name}: give tar files, such as shards/train-*.tar")
            paths += map(Path, found)
    if not paths:
        raise UserError(f"{option}={value} names no shard: numbers in braces count up, as in {{000..009}}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"{option}={value} names a shard twice")
    return paths


def _braces(pattern: str) -> list[str]:
    """``{000..002}`` and ``{a,b}`` expanded as a shell does."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", found.group(1))
    if bounds:
        first, last = bounds.groups()
        padded = any(end[0] == "0" and len(end) > 1 for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        middle = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        middle = found.group(1).split(",")
    return [rest for part in middle for rest in _braces(pattern[: found.start()] + part + pattern[found.end() :])]


def read_index(paths: Sequence[Path], label_key: str | None) -> Index:
    """The images in ``paths``, from the headers; kept in the cache folder for each shard until it changes.

    Raises:
        UserError: a shard cannot be read, is compressed, cut short or has no image, or a label is no whole number.
    """
    parts = []
    with ExitStack() as stack:
        bars: list[Bar] = []

        def make(number: int) -> Arrays:
            if not bars:  # where all is cached, there is nothing to show
                total = sum(path.stat().st_size >> 20 for path in paths[number:])
                bars.append(stack.enter_context(progress_bar("indexing shards", total, "MB")))
            return _index_shard(paths[number], label_key, bars[0])

        for number, path in enumerate(paths):
            key = [_FORMAT, json.dumps(label_key), file_key(path)]
            parts.append(cached_arrays("webdataset", key, partial(make, number), complain=not bars))
    shards = np.repeat(np.arange(len(parts)), [len(part["names"]) for part in parts])
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Index(shards=shards, **joined)


def _index_shard(path: Path, label_key: str | None, bar: Bar) -> Arrays:
    rows: list[tuple[bytes, int, int, int]] = []
    seen: set[str] = set()
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    with file:
        for key, members in _samples(path, file, bar):
            seen.update(member.extension for member in members)
            kinds = {member.extension: member for member in reversed(members)}
            image = next((kinds[extension] for extension in EXTENSIONS if extension in kinds), None)
            if image is not None:
                name = f"{key}.{image.extension}".encode("utf-8", "surrogateescape")
                rows.append((name, image.offset, image.size, _label(path, file, key, kinds, label_key)))
    if not rows:
        raise UserError(
            f"{path} holds no images (looked for {' '.join(EXTENSIONS)}, found {' '.join(sorted(seen)[:9])})"
        )
    names, offsets, sizes, labels = zip(*rows)
    whole = {"offsets": offsets, "sizes": sizes, "labels": labels}
    return {"names": np.array(names), **{key: np.array(values, dtype=np.int64) for key, values in whole.items()}}


def _samples(path: Path, file: IO[bytes], bar: Bar) -> Iterator[tuple[str, list[Member]]]:
    """Key and members of each sample: the neighbours in the tar whose names differ in their extension alone."""
    key = ""
    members: list[Member] = []
    for name, offset, size in _members(path, file, bar):
        here, extension = split_name(name)
        if here != key and members:
            yield key, members
            members = []
        key = here
        members.append(Member(extension, offset, size))
    if members:
        yield key, members


def _members(path: Path, file: IO[bytes], bar: Bar) -> Iterator[tuple[str, int, int]]:
    """Name, position and size of each plain file in a tar, or a UserError if its end is missing."""
    name, done, total = "its first header", 0, path.stat().st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else they are all kept
                name = entry.name
                if tar.offset > total:
                    raise UserError(f"{path} is cut short in {name}: replace it")
                if entry.isreg() and not entry.issparse():
                    yield name, entry.offset_data, entry.size
                now = tar.offset >> 20
                if now > done:
                    bar.advance(now - done)
                    done = now
            end = tar.offset
    except tarfile.TarError as error:
        hint = "a shard must not be compressed" if path.suffix != ".tar" else "replace it"
        raise UserError(f"cannot read {path} after {name} ({error}): {hint}") from error
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes a damaged header for the end
        raise UserError(f"{path} is damaged or cut short after {name}: replace it")
    bar.advance((total >> 20) - done)


def _label(path: Path, file: IO[bytes], key: str, kinds: dict[str, Member], label_key: str | None) -> int:
    """tarfile finds its place again by itself."""
    if "cls" in kinds:
        return _whole(path, f"{key}.cls", _read(file, kinds["cls"]).strip())
    if "json" in kinds and label_key:
        try:
            values = json.loads(_read(file, kinds["json"]))
        except ValueError as error:
            raise UserError(f"{path}: {key}.json is not valid JSON ({error})") from error
        if isinstance(values, dict) and label_key in values:
            return _whole(path, f"{label_key!r} in {key}.json", values[label_key], "; data.label_key=null reads none")
    return NO_LABEL


def _read(file: IO[bytes], member: Member) -> str:
    file.seek(member.offset)
    return file.read(member.size).decode("utf-8", "replace")


def _whole(path: Path, what: str, value: object, hint: str = "") -> int:
    text = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    if text.isdecimal() and len(text) < 20 and int(text) < MOST_CLASSES:
        return int(text)
    raise UserError(f"{path}: {what} is {str(value)[:40]!r}: a label is a whole number below {MOST_CLASSES:,}{hint}")


class ShardFiles:
    """Reads members of shards; keeps some of the files open.

    Args:
        paths: of the shards.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()

    def read(self, shard: int, offset: int, size: int) -> NDArray[np.uint8]:
        """``size`` bytes from ``offset`` of a shard; fewer where it ends before.

        Raises:
            UserError: the shard cannot be read.
        """
        try:
            handle = self._handle(shard)
            if hasattr(os, "pread"):
                raw = os.pread(handle, size, offset)
            else:
                os.lseek(handle, offset, os.SEEK_SET)
                raw = os.read(handle, size)
        except OSError as error:
            raise UserError(f"cannot read {self.paths[shard]}: {error.strerror or error}") from error
        return np.frombuffer(bytearray(raw), dtype=np.uint8)

    def _handle(self, shard: int) -> int:
        if shard not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = self.paths[shard].open("rb", buffering=0)
        self._open.move_to_end(shard)
        return self._open[shard].fileno()

    def __del__(self) -> None:
        for file in self._open.values():
            file.close()
