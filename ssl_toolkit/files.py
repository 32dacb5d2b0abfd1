"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_toolkit.errors import UserError

LEFTOVER = re.compile(r"\..*-[a-z0-9_]{8}(\.[^.]*)?")
"""Names of `atomic_path`'s temporary files."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that replaces ``path`` when the block ends well.

    What was written reaches the disk before it takes the place of what was there, so that not even a power cut leaves
    half a file.

    Raises:
        UserError: the folder cannot be written or the disk is full; ``path`` keeps what it had.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; what was there is kept") from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the disk hold a file, or what a folder lists, as it is now."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError:
        if not folder:  # some network file systems know no fsync of folders
            raise
    finally:
        os.close(handle)


def disk_full(error: BaseException) -> bool:
    """Whether ``error``, or what it was raised from, says that there is no room left."""
    numbers = {getattr(each, "errno", None) for each in (error, error.__cause__)}
    return bool(numbers & {errno.ENOSPC, errno.EDQUOT})


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` hold what ``source`` holds, atomically: by a hard link where the file system has them.

    Raises:
        UserError: the folder cannot be written or the disk is full; ``target`` keeps what it had.
    """
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def clear_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that a killed process left in ``folder``; returns what was removed.

    Only for folders into which nobody else writes now.
    """
    found = [path for path in folder.iterdir() if LEFTOVER.fullmatch(path.name)] if folder.is_dir() else []
    for path in found:
        path.unlink(missing_ok=True)
    return found


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=True) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; one that is missing or broken is a `UserError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def cache_dir() -> Path:
    """Where made data is kept: ``$SSL_TOOLKIT_CACHE``, else ``~/.cache/ssl-toolkit``."""
    override = os.environ.get("SSL_TOOLKIT_CACHE")
    return Path(override) if override else Path.home() / ".cache" / "ssl-toolkit"
