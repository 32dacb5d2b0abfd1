"""The files of published checkpoints on this machine: fetched once, resumed, and checked.

A download goes into ``NAME.part`` and takes its place when it is whole and has the published hash. The SHA-256 of what
was fetched is kept beside it, and a file that no longer has it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock, Timeout
from rich.console import Console

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import cache_dir, disk_full, sha256, write_text
from ssl_toolkit.progress import progress_bar
from ssl_toolkit.zoo.index import FileSpec, Published, published

TIMEOUT = 30.0
"""Seconds without an answer, after which a server is given up."""

BLOCK = 1 << 20
MEGABYTE = 1_000_000
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
ZIP = b"PK\x03\x04"
AGAIN = "the same command goes on from there"


def zoo_path(entry: Published, part: str | None = None) -> Path:
    """Where the file of an entry lies or would lie: in the cache, or where a path among one's own entries says."""
    file = entry.file(part)
    if "://" not in file.url:
        return Path(file.url)
    return cache_dir() / "zoo" / entry.name / (file.name or PurePosixPath(urlparse(file.url).path).name)


def zoo_file(name: str, console: Console | None = None, part: str | None = None) -> Path:
    """The checkpoint file of ``name``, downloaded into the cache where it is not there yet.

    A file that was put there by hand is held to the published hash, where there is one, and else taken as it is.

    Args:
        part: ``backbone`` or ``full``; None is the first that can be loaded.

    Raises:
        UserError: an unknown name or part, no way to the server, a web page in place of the file, a file that is not
            whole, does not have the published hash or has changed.
    """
    entry = published(name)
    file, path = entry.file(part), zoo_path(entry, part)
    kept = _beside(path, "sha256")
    local = "://" not in file.url
    if local and not path.is_file():
        raise UserError(f"zoo checkpoint {entry.name}: {path} does not exist")
    if not path.is_file():
        _fetch_once(entry, file, path, console or Console())
    elif local or not kept.is_file():
        _check(path, file)
    elif kept.read_text(encoding="utf-8").strip() != sha256(path):
        raise UserError(f"{path} is not what was downloaded (its SHA-256 differs from {kept.name}): delete both files")
    return path


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _fetch_once(entry: Published, file: FileSpec, path: Path, console: Console) -> None:
    """Download and check a file, in one process at a time."""
    if file.browser:
        raise UserError(f"{entry.name} lies behind a page: open {file.url} in a browser and save the file as {path}")
    with _alone(path, console):
        if path.is_file():  # by the process that was waited for
            return
        console.print(
            f"{entry.name}: licence {entry.license}, {entry.source}", highlight=False, markup=False, soft_wrap=True
        )
        download(file.url, path, console)
        try:
            _check(path, file)
        except UserError as error:
            path.unlink()
            raise UserError(f"{error}; it came from {file.url} and was removed") from error
        write_text(_beside(path, "sha256"), f"{sha256(path)}\n")


@contextmanager
def _alone(path: Path, console: Console) -> Iterator[None]:
    """Hold the lock of a file's folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.parent / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.print(f"another process downloads {path.name}; waiting for it", highlight=False, soft_wrap=True)
            lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def download(url: str, path: Path, console: Console) -> None:
    """Fetch ``url`` into ``path``, going on with ``NAME.part`` where the server still has the same file.

    Raises:
        UserError: no way to the server, a web page in place of a file, no room, or fewer bytes than announced.
    """
    try:
        try:
            _continue(url, path, console)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # else what is there is not the beginning of the file as it is now
                raise
            _drop(path)
            _continue(url, path, console)
    except urllib.error.HTTPError as error:
        raise _unreachable(url, path, f"{error.code} {error.reason}") from error
    except (urllib.error.URLError, HTTPException, OSError) as error:
        if disk_full(error):
            raise UserError(f"no room for {path}: {AGAIN}") from error
        reason: Any = getattr(error, "reason", None) or error
        raise _unreachable(url, path, getattr(reason, "strerror", None) or str(reason)) from error


def _unreachable(url: str, path: Path, reason: str) -> UserError:
    partial = _beside(path, "part")
    have = partial.stat().st_size if partial.is_file() else 0
    hint = f"{have / MEGABYTE:,.0f} MB are here, {AGAIN}" if have else f"check the network, or put the file at {path}"
    return UserError(f"cannot download {url} ({reason}): {hint}")


def _drop(path: Path) -> None:
    for suffix in ("part", "part.json"):
        _beside(path, suffix).unlink(missing_ok=True)


def _continue(url: str, path: Path, console: Console) -> None:
    partial, about = _beside(path, "part"), _beside(path, "part.json")
    version = _version(about, url)
    done = partial.stat().st_size if partial.is_file() and version else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "ssl-toolkit"}
    if done:
        headers.update({"Range": f"bytes={done}-", "If-Range": version})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status == 206 and not str(answer.headers.get("Content-Range")).startswith(f"bytes {done}-"):
            _drop(path)
            raise OSError("the server sent another part than was asked for")
        if answer.status != 206:  # from the start: it knows no parts, or the file has changed
            done = 0
            write_text(about, json.dumps({"url": url, "version": _names(answer.headers)}))
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else 0
        with partial.open("ab" if done else "wb") as file:
            arrived = _receive(answer, file, done, total, path, console)
            file.flush()
            os.fsync(file.fileno())
    if total and arrived != total:
        raise OSError(f"{arrived:,} of {total:,} bytes arrived")
    partial.replace(path)
    about.unlink(missing_ok=True)


def _names(headers: Any) -> str:
    """What ``If-Range`` takes: the version of a file that a server names, empty where it names none."""
    tag = headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""


def _version(about: Path, url: str) -> str:
    """The version of which a part is here, empty for none that can be continued."""
    try:
        stored = json.loads(about.read_text(encoding="utf-8"))
        return str(stored["version"]) if stored["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _receive(answer: Any, file: Any, done: int, total: int, path: Path, console: Console) -> int:
    """Write what arrives; returns how much of the file is there then."""
    with progress_bar(f"downloading {path.name}", total // MEGABYTE, "MB", done // MEGABYTE, console) as bar:
        while block := answer.read(BLOCK):
            if done == 0 and (answer.headers.get_content_type() == "text/html" or is_page(block)):
                _drop(path)
                raise _page(answer.url, path)
            file.write(block)
            done += len(block)
            bar.total = max(bar.total, done // MEGABYTE)  # where the server does not say
            bar.advance(done // MEGABYTE - bar.done)
    return done


def is_page(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a web page, such as an error, rather than a checkpoint."""
    return head[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES)


def _page(url: str, path: Path) -> UserError:
    return UserError(
        f"{url} answered with a web page, not a checkpoint: open it in a browser, and save the file as {path}"
    )


def _check(path: Path, file: FileSpec) -> None:
    """Refuse a file that is a web page, is cut off, or does not have the published hash."""
    with path.open("rb") as stream:
        head = stream.read(BLOCK)
    if is_page(head):
        raise UserError(f"{path} is a web page, not a checkpoint")
    if not head or (head.startswith(ZIP) and not zipfile.is_zipfile(path)):
        raise UserError(f"{path} is not whole: its end is missing")
    if file.hash is None:
        return
    kind, _, digits = file.hash.partition(":")
    found = _digest(path, kind)
    if not found.startswith(digits):
        shown = found[: max(8, len(digits))]
        raise UserError(f"{path} is not the published file: its {kind} begins with {shown}, not {digits}")


def _digest(path: Path, kind: str) -> str:
    if kind == "sha256":
        return sha256(path)
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
