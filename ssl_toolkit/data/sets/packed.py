"""What is costly to learn about a data set, kept as arrays in the cache folder."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path, cache_dir

Arrays = dict[str, NDArray[Any]]


def file_key(path: Path) -> str:
    """Changes with the place, size and time of change of a file.

    Raises:
        UserError: there is no such file.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"


def cached_arrays(kind: str, key: Sequence[str], make: Callable[[], Arrays], complain: bool = True) -> Arrays:
    """What ``make`` returned when it was last called for ``key``; a cache that cannot be used costs time alone.

    Args:
        kind: folder below the cache folder.
        key: all that the arrays depend on, a version of their format among it.
        complain: say so where they cannot be kept.
    """
    name = hashlib.blake2b("\0".join(key).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    path = cache_dir() / kind / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {entry: stored[entry] for entry in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass  # not there or damaged
    arrays = make()
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
    except (OSError, UserError) as error:
        if complain:
            line = f"what was read is not kept ({error}); set SSL_TOOLKIT_CACHE to a folder that can be written"
            Console().print(line, markup=False, highlight=False, soft_wrap=True)
    return arrays
