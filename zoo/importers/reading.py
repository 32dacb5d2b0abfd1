"""Reading checkpoint files that anybody may have made: nothing in them is run, and nothing absurd is built."""

from __future__ import annotations

import json
import mmap
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssl_toolkit.backbones.probe import reason
from ssl_toolkit.errors import UserError
from ssl_toolkit.zoo.importers.pickles import Findings, Inert, scan

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first number of files that PyTorch wrote before 1.6."""
LEGACY_PICKLES = 5
"""Of such a file: this number, the version, the machine, the objects, the names of the storages."""

MAX_ENTRIES = 100_000
"""Tensors in a file."""
MAX_INDEX = 64 << 20
"""Bytes of a file that are not numbers."""
SHARED = 8
"""How many times over tensors may use the numbers of a file, as tied weights do."""

HINTS = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
)


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        tree: dicts and lists of tensors and plain values; what trainers keep beside the weights is left out.
        metadata: the strings of a safetensors file.
    """

    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)


class _Damaged(Exception):
    """Why a file is not read."""


def read_contents(path: Path) -> Contents:
    """What a safetensors file or one that ``torch.save`` wrote holds, on the CPU; the ending of its name says nothing.

    Raises:
        UserError: no file, not such a file, a damaged one, one that would run code, or one that claims more than it
            has.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: {'it is a folder' if path.is_dir() else 'it does not exist'}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
            if not start:
                raise _Damaged("it is empty: the download failed, or the disk was full")
            if start[8:9] == b"{":  # first of all: the length before it may begin with any byte
                return _safetensors(path, file, size)
            if start.startswith(b"PK\x03\x04"):
                found = _check_zip(file, size)
            elif start[:1] == b"\x80":
                found = _check_legacy(file, size)
            else:
                _no_checkpoint(start)
        return Contents(_load(path, found, size))
    except _Damaged as error:
        raise UserError(f"{path} does not load as plain tensors: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _no_checkpoint(start: bytes) -> NoReturn:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise _Damaged("it is a web page, such as an error message of the server: download it again")
    for magic, what in HINTS:
        if start.startswith(magic):
            raise _Damaged(f"it is {what}")
    raise _Damaged("it is neither a PyTorch checkpoint nor safetensors")


def _check_zip(file: BinaryIO, size: int) -> Findings:
    """Hold the archive that ``torch.save`` writes to its own size, and read its pickle's instructions."""
    entries = _zip_entries(file, size)
    if entries > MAX_ENTRIES:
        raise _Damaged(f"it has {entries:,} entries, more than the {MAX_ENTRIES:,} that weights may have")
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            names = {info.filename.split("/", 1)[-1]: info for info in infos}
            if "constants.pkl" in names:
                raise _Damaged("it is a TorchScript archive, which holds code: save its state_dict() instead")
            if "data.pkl" not in names:
                raise _Damaged("it is a zip archive, but not one of PyTorch's: unpack it first")
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise _Damaged("it is a compressed archive, which PyTorch does not write")
            unpacked = sum(info.file_size for info in infos)
            if unpacked > size:
                raise _Damaged(f"its entries claim {unpacked:,} bytes, the file has {size:,}")
            if names["data.pkl"].file_size > MAX_INDEX:
                raise _Damaged(f"its index has {names['data.pkl'].file_size:,} bytes, far more than weights need")
            with archive.open(names["data.pkl"]) as pickle:
                return _accepted(_scanned(pickle), size)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error) as error:
        raise _Damaged(f"it is cut off or damaged ({reason(error)}): download it again") from error


def _zip_entries(file: BinaryIO, size: int) -> int:
    """The number of entries that the end of a zip archive gives."""
    length = min(size, (1 << 16) + 22 + 20 + 56)
    file.seek(size - length)
    tail = file.read(length)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise _Damaged("it is cut off, its end is missing: download it again")
    entries = int(struct.unpack_from("<H", tail, end + 10)[0])
    long = tail.rfind(b"PK\x06\x06", 0, end)
    if entries == 0xFFFF and 0 <= long <= end - 56:
        entries = int(struct.unpack_from("<Q", tail, long + 32)[0])
    file.seek(0)
    return entries


def _check_legacy(file: BinaryIO, size: int) -> Findings:
    """Read the instructions of the pickles that a file from before PyTorch 1.6 begins with."""
    together = Findings()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for number in range(LEGACY_PICKLES):
            found = _scanned(mapped)  # type: ignore[arg-type]
            together.names |= found.names
            together.numbers += found.numbers
            _accepted(together, size)
            if number == 0 and found.first != LEGACY_MAGIC:
                raise _Damaged("it is a pickle that torch.save did not write, and is not opened")
    return together


def _scanned(file: BinaryIO) -> Findings:
    try:
        return scan(file)
    except (ValueError, IndexError, OverflowError, UnicodeDecodeError) as error:
        said = reason(error)
        raise _Damaged(said if said.startswith("it") else f"it is cut off or damaged ({said})") from error


def _accepted(found: Findings, size: int) -> Findings:
    if found.refused():
        names = ", ".join(found.refused()[:3])
        raise _Damaged(f"loading it would run or build {names}, which is not data; nothing of it was run")
    if found.numbers > SHARED * size:
        raise _Damaged(f"its tensors claim {found.numbers:,} numbers, the file has {size:,} bytes")
    return found


def _load(path: Path, found: Findings, size: int) -> Any:
    stand_ins: list[Any] = [(Inert, name) for name in found.inert()]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old kinds of storages, which say nothing to the user
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise _Damaged(f"it is damaged, or holds more than weights ({reason(error)})") from error
    sizes = [value.numel() * value.element_size() for value in _tensors(tree)]
    if len(sizes) > MAX_ENTRIES:
        raise _Damaged(f"it has {len(sizes):,} tensors, more than the {MAX_ENTRIES:,} that weights may have")
    claimed = sum(sizes)
    if claimed > SHARED * size:
        raise _Damaged(f"its tensors claim {claimed:,} bytes, the file has {size:,}")
    return tree


def _tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors of nested dicts, lists and tuples, each container once."""
    stack, seen = [tree], set()
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            stack += item.values() if isinstance(item, dict) else item


def _safetensors(path: Path, file: BinaryIO, size: int) -> Contents:
    file.seek(0)
    length = struct.unpack("<Q", file.read(8))[0]
    if length > size - 8:
        raise _Damaged("it is cut off: download it again")
    if length > MAX_INDEX:
        raise _Damaged(f"its index has {length:,} bytes, far more than weights need")
    try:
        header = json.loads(file.read(length))
        if len(header) > MAX_ENTRIES:
            raise _Damaged(f"it has {len(header):,} tensors, more than the {MAX_ENTRIES:,} that weights may have")
        metadata = {str(key): str(value) for key, value in dict(header.get("__metadata__") or {}).items()}
        return Contents(load_file(path), metadata)
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"it is cut off or damaged ({reason(error)}): download it again") from error
