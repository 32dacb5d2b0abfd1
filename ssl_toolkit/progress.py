"""Progress that a person can read: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

T = TypeVar("T")

LOG_EVERY_SECONDS = 20.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Bar:
    """One bar: ``advance(n)`` moves it; throughput and time left come from the moves of the last seconds.

    Made by `progress_bar`, which also closes it.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        console: Console,
        done: int = 0,
        log_every: float = LOG_EVERY_SECONDS,
    ) -> None:
        self.title, self.total, self.unit, self.console = title, total, unit, console
        self.log_every = log_every
        self.done = done
        self.note = ""
        self._start_done = done
        self._start = self._last_log = time.monotonic()
        self._live: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._live = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                console=console,
                refresh_per_second=4,
            )
            self._live.start()
            self._task = self._live.add_task(title, total=total, completed=done, status="")

    @property
    def live(self) -> bool:
        """Whether it is drawn on a terminal."""
        return self._live is not None

    @property
    def rate(self) -> float:
        """Units a second since the bar was made."""
        return (self.done - self._start_done) / max(time.monotonic() - self._start, 1e-9)

    def _speed(self) -> str:
        if 0 < self.rate < 1:
            return f"{1 / self.rate:,.0f} s each"
        return f"{self.rate:,.0f} {self.unit}/s"

    def status(self) -> str:
        """``"412 images/s, 0:31 left, loss 12.3"``."""
        left = (self.total - self.done) / self.rate if self.rate > 0 else 0.0
        parts = [self._speed(), f"{_clock(left)} left"]
        return ", ".join([*parts, self.note] if self.note else parts)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move by ``count`` units; ``note`` is shown at the end of the line."""
        self.done += count
        if note is not None:
            self.note = note
        if self._live is not None:
            self._live.update(self._task, completed=self.done, status=self.status())
        elif time.monotonic() - self._last_log >= self.log_every:
            self._last_log = time.monotonic()
            self.log(f"{self.title}: {self.done}/{self.total}, {self.status()}")

    def log(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stop drawing; in a log, say how long it took."""
        seconds = time.monotonic() - self._start
        if self._live is not None:
            self._live.stop()
        elif self.done > self._start_done:
            self.log(f"{self.title}: {self.done}/{self.total} in {_clock(seconds)} ({self._speed()})")


@contextmanager
def progress_bar(
    title: str,
    total: int,
    unit: str = "images",
    done: int = 0,
    console: Console | None = None,
    log_every: float = LOG_EVERY_SECONDS,
) -> Iterator[Bar]:
    """A `Bar` for the length of a ``with`` block; in a log it has a line every ``log_every`` seconds."""
    bar = Bar(title, total, unit, console or Console(), done, log_every)
    try:
        yield bar
    finally:
        bar.close()


def track(
    items: Iterable[T], title: str, total: int, unit: str = "images", size: int = 1, console: Console | None = None
) -> Iterator[T]:
    """Iterate over ``items`` under a bar that moves by ``size`` units for each."""
    with progress_bar(title, total, unit, console=console) as bar:
        for item in items:
            yield item
            bar.advance(min(size, bar.total - bar.done))
