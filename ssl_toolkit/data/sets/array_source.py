"""Arrays in ``.npy``, ``.npz`` and HDF5 files, read row by row."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_toolkit.data.sets.handles import PerProcess
from ssl_toolkit.errors import UserError, nearest

KINDS = "FILE.npy, FILE.npz:KEY or FILE.h5:KEY"

_HDF5 = (".h5", ".hdf5")


class ArraySource:
    """An array in a file: ``.npy`` is mapped into memory, HDF5 read from disk, ``.npz`` loaded whole.

    An HDF5 file is opened anew by each process, when it first reads from it.

    Args:
        option: the config key that names the array, for errors.
        value: ``FILE.npy``, ``FILE.npz:KEY`` or ``FILE.h5:KEY``; the key may be left out where there is only one array.

    Raises:
        UserError: there is no such file or key, or it is no array of numbers.
    """

    def __init__(self, option: str, value: str) -> None:
        self.option = option
        self.path, key = find_array(option, value)
        # Only an open HDF5 file is unsafe across a fork; arrays stay shared, a large .npz loaded once for all workers.
        self._array = PerProcess(partial(_open, option, self.path, key), forks=self.path.suffix.lower() not in _HDF5)
        self.shape = tuple(int(side) for side in self._array.get().shape)
        self.dtype: np.dtype[Any] = self._array.get().dtype

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def row(self, index: int) -> NDArray[Any]:
        """Row ``index``, in the byte order of this machine."""
        return self._read(index)

    def whole(self) -> NDArray[Any]:
        """The whole array, in the byte order of this machine."""
        return self._read(slice(None))

    def _read(self, where: int | slice) -> NDArray[Any]:
        try:
            values = np.asarray(self._array.get()[where])
        except (OSError, ValueError, RuntimeError) as error:
            which = f"row {where} of " if isinstance(where, int) else ""
            raise UserError(f"{self.option}: cannot read {which}{self.path} ({_line(error)})") from error
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def find_array(option: str, value: str) -> tuple[Path, str | None]:
    """File and key of ``value``, the config key ``option``; the key is None where it is left out.

    Raises:
        UserError: there is no such file, or it is of another kind.
    """
    path, key = _split(value)
    if path.suffix.lower() not in (".npy", ".npz", *_HDF5):
        raise UserError(f"{option}={value}: give {KINDS}")
    if not path.is_file():
        raise UserError(f"{option}: there is no file {path}")
    return path, key


def same_array(one: str, other: str) -> bool:
    """Whether two values name one array; a key may be left out only where a file has no other."""
    (path, key), (other_path, other_key) = _split(one), _split(other)
    keys = {name.strip("/") for name in (key, other_key) if name is not None}
    return path.resolve() == other_path.resolve() and len(keys) <= 1


def _split(value: str) -> tuple[Path, str | None]:
    file, colon, key = value.rpartition(":")
    keyed = colon and file.lower().endswith((".npz", *_HDF5))
    return (Path(file).expanduser(), key) if keyed else (Path(value).expanduser(), None)


def _open(option: str, path: Path, key: str | None) -> Any:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return stored[_choose(option, path, key, list(stored.files))]
        return _open_hdf5(option, path, key)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{option}: cannot read {path} ({_line(error)})") from error


def _open_hdf5(option: str, path: Path, key: str | None) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{option}={path} needs h5py: pip install 'ssl-toolkit[hdf5]'") from error
    file = h5py.File(path, "r")
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    array = file[_choose(option, path, key.strip("/") if key else None, names)]
    if array.shape is None:
        raise UserError(f"{option}: {array.name} in {path} is an empty dataset: choose another key")
    return array


def _choose(option: str, path: Path, key: str | None, names: list[str]) -> str:
    if key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        raise UserError(f"{option}: {path} holds {len(names)} arrays, say which with {path}:KEY; {nearest('', names)}")
    raise UserError(f"{option}: {path} has no array {key!r}: {nearest(key, names)}")


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
