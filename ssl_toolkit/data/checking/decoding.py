"""Reading and fully decoding many image files in worker processes that may die.

A damaged file can end the whole process in a decoder's C code. So each worker writes what it finds into shared memory
as it goes, and marks the file it is on: when a worker dies, that file is known, and the others lose nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ssl_toolkit.data.base import Image
from ssl_toolkit.data.checking.lists import Names
from ssl_toolkit.data.decode import decode_image, read_bytes
from ssl_toolkit.data.probe import probe_image
from ssl_toolkit.errors import UserError
from ssl_toolkit.progress import Bar

WAITING, STARTED, FAILED, FINE = range(4)
"""States of a file."""

_CHUNK = 16  # files sent at once
_AHEAD = 2  # chunks a worker has, so that it never waits
_LAUNCHES = 3  # in a row of workers that die before any file


class Job(NamedTuple):
    """What to do with every file: see `ssl_toolkit.data.files.FileConfig` for the options."""

    root: str
    in_channels: int
    bits: int

    def record(self) -> np.dtype[Any]:
        """What is kept of a file; ``channels`` and ``bits`` are those of the file, means of ``pixels / 255``."""
        values = (self.in_channels,)
        return np.dtype([
            ("state", "u1"), ("bytes", "i8"), ("height", "i4"), ("width", "i4"), ("channels", "u2"), ("bits", "u1"),
            ("format", "S8"), ("hash", "u8", (2,)), ("mean", "f8", values), ("mean_square", "f8", values),
        ])  # fmt: skip


def examine(name: str, job: Job, record: Any) -> str | None:
    """Read and decode one file and fill in its record.

    Returns:
        Why it cannot be read, or None.
    """
    path = Path(job.root, name)
    record["state"] = STARTED
    try:
        raw = read_bytes(path)
        record["bytes"] = len(raw)
        record["hash"] = np.frombuffer(blake2b(raw.data, digest_size=16).digest(), dtype=np.uint64)
        image = decode_image(raw, str(path), job.in_channels, job.bits)
        info = probe_image(raw, str(path))
    except UserError as error:
        record["state"] = FAILED
        return _reason(str(error), str(path))
    record["height"], record["width"] = image.shape[:2]
    record["format"], record["channels"], record["bits"] = info.format, info.channels, info.bits
    record["mean"], record["mean_square"] = _moments(image)
    record["state"] = FINE
    return None


def _reason(line: str, name: str) -> str:
    """The cause alone of an error line of `ssl_toolkit.data.decode`, in the words of a check."""
    line = line.removesuffix(": remove or replace it").replace("data.in_channels", "in_channels")
    if line.startswith(f"cannot decode {name} ("):
        cause, _, remedy = line.removeprefix(f"cannot decode {name} (").rpartition(")")
        return cause + remedy
    return line.removeprefix(f"cannot read {name}: ").removeprefix(f"{name} ")


def _moments(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and mean square of each channel of ``image / 255``, ``(C,)``."""
    if image.dtype == np.uint8 and image.shape[2] in (1, 3, 4):
        mean, deviation = (values.ravel() / 255 for values in cv2.meanStdDev(image))  # in whole numbers, hence exact
        return mean, deviation**2 + mean**2
    pixels = image.reshape(-1, image.shape[2]).astype(np.float64) / 255
    return pixels.mean(axis=0), np.square(pixels).mean(axis=0)


def _work(connection: Connection, shared: Any, job: Job) -> None:
    """A worker: takes chunks of ``(index, name)``, answers each with its failures, ends at None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    cv2.setNumThreads(0)  # the workers are the parallelism
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of decoders about what is reported anyway
    records = np.frombuffer(shared, dtype=job.record())
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone
        while (chunk := connection.recv()) is not None:
            failures = {index: examine(name, job, records[index]) for index, name in chunk}
            connection.send({index: reason for index, reason in failures.items() if reason is not None})


@dataclass
class _Worker:
    """A process with its end of the pipe and the chunks it has not answered, the oldest first."""

    process: Any
    connection: Connection
    chunks: deque[list[int]] = field(default_factory=deque)


def examine_all(names: Names, job: Job, workers: int, bar: Bar) -> tuple[NDArray[Any], dict[int, str]]:
    """Every file's record, and why those that cannot be read cannot.

    Args:
        names: below ``job.root``, or absolute.
        workers: processes; 0 does it in this one, which a decoder that crashes then ends.
        bar: moved by one per file.

    Returns:
        Records ``(N,)`` of `Job.record`, in the order of ``names``, and reasons by position.

    Raises:
        UserError: workers cannot be started.
    """
    if workers == 0:
        return _examine_here(names, job, bar)
    pool = _Pool(names, job, bar)
    try:
        pool.run(min(workers, max(1, len(names) // _CHUNK)))
    finally:
        pool.stop()
    return pool.records, pool.reasons


def _examine_here(names: Names, job: Job, bar: Bar) -> tuple[NDArray[Any], dict[int, str]]:
    records, reasons = np.zeros(len(names), dtype=job.record()), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in range(len(names)):
            reason = examine(names[index], job, records[index])
            if reason is not None:
                reasons[index] = reason
            bar.advance(1, _note(reasons))
    return records, reasons


def _note(reasons: dict[int, str]) -> str:
    return f"{len(reasons)} unreadable" if reasons else ""


class _Pool:
    """Worker processes that are replaced when they die."""

    def __init__(self, names: Names, job: Job, bar: Bar) -> None:
        self.names, self.job, self.bar = names, job, bar
        self.context = _context()
        self.shared = self.context.RawArray("b", max(1, len(names)) * job.record().itemsize)
        self.records: NDArray[Any] = np.frombuffer(self.shared, dtype=job.record())[: len(names)]
        self.reasons: dict[int, str] = {}
        self.waiting = (list(range(i, min(i + _CHUNK, len(names)))) for i in range(0, len(names), _CHUNK))
        self.again: deque[list[int]] = deque()
        self.workers: list[_Worker] = []
        self.idle_deaths = 0

    def run(self, workers: int) -> None:
        """Examine everything."""
        for _ in range(workers):
            self._launch()
        while True:
            for worker in self.workers:
                self._feed(worker)
            busy = [worker for worker in self.workers if worker.chunks]
            if not busy:
                return
            self._collect(busy)

    def stop(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.connection.close()

    def _launch(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(theirs, self.shared, self.job), daemon=True)
        with _interrupts_ignored():
            process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours))

    def _feed(self, worker: _Worker) -> None:
        while len(worker.chunks) < _AHEAD:
            chunk = self.again.popleft() if self.again else next(self.waiting, None)
            if chunk is None:
                return
            worker.chunks.append(chunk)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead: noticed when collecting
                worker.connection.send([(index, self.names[index]) for index in chunk])

    def _collect(self, busy: Sequence[_Worker]) -> None:
        """Wait until some worker answers or dies."""
        ready = multiprocessing.connection.wait([worker.connection for worker in busy])
        for worker in busy:
            if worker.connection not in ready:
                continue
            try:
                self.reasons.update(worker.connection.recv())
            except (EOFError, ConnectionResetError):
                self._bury(worker)
            else:
                self.idle_deaths = 0
                self.bar.advance(len(worker.chunks.popleft()), _note(self.reasons))

    def _bury(self, worker: _Worker) -> None:
        """Note the file that a dead worker was on, hand what it had left to others, and replace it."""
        worker.process.join()
        self.workers.remove(worker)
        worker.connection.close()
        left = [index for chunk in worker.chunks for index in chunk]
        for index in left:
            if self.records["state"][index] == STARTED:
                self.records["state"][index] = FAILED
                self.reasons[index] = f"decoding it ended the process ({_ending(worker.process.exitcode)})"
                self.idle_deaths = -1
        self.idle_deaths += 1
        if self.idle_deaths >= _LAUNCHES:
            ending = _ending(worker.process.exitcode)
            raise UserError(f"worker processes end before they do anything ({ending}); workers=0 works without them")
        done = [index for index in left if self.records["state"][index] == FINE or index in self.reasons]
        self.bar.advance(len(done), _note(self.reasons))
        rest = sorted(set(left) - set(done))  # those that failed are done again, as their reasons were lost
        self.again.extend(rest[i : i + _CHUNK] for i in range(0, len(rest), _CHUNK))
        self._launch()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit status {code}"


def _context() -> Any:
    """How workers start. Not by a plain fork: decoders in a copy of a process with threads can hang. A fork server has
    imported this module once, so that a worker that dies is replaced at once; where there is none each imports it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started inside ignores Ctrl+C from its first moment, not only once it has imported everything."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
