"""Work that is stopped and taken up again: where its state lies, and signals that wait for a good moment."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path


@dataclass(frozen=True)
class Unfinished:
    """Where the state of unfinished work is kept.

    Attributes:
        folder: None keeps none.
        name: of the work, for people.
        identity: everything its outcome depends on: a state of anything else is not taken up.
    """

    folder: Path | None
    name: str
    identity: Mapping[str, Any]

    @property
    def path(self) -> Path | None:
        """The file; its name changes with ``identity``."""
        if self.folder is None:
            return None
        text = json.dumps(dict(self.identity), sort_keys=True, default=str)
        return self.folder / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"

    def of(self, more: Mapping[str, Any]) -> Unfinished:
        """The same work where its outcome depends on ``more``, too."""
        return replace(self, identity={**self.identity, **more})

    def load(self) -> dict[str, Any] | None:
        """What was kept, on the CPU; None where nothing was, or it is damaged."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # torch raises many kinds for a file that is none of its own
            self.tell("is damaged")
            return None
        if not isinstance(state, dict):
            self.tell("is damaged")
            return None
        return state

    def tell(self, what: str) -> None:
        """Say why the file is not taken up."""
        Console().print(f"{self.path} {what}; starting {self.name} anew", highlight=False, markup=False, soft_wrap=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep ``state``; a disk that is full costs what is kept, not the work."""
        if self.path is None:
            return
        try:
            with atomic_path(self.path) as temporary:
                torch.save(dict(state), temporary)
        except (OSError, UserError, RuntimeError) as error:
            Console().print(f"{self.name} cannot be resumed: {error}", highlight=False, markup=False, soft_wrap=True)

    def clear(self) -> None:
        """Forget it, and the folder if nothing else is in it: the work is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):
                self.path.parent.rmdir()


@contextmanager
def held_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM until a step is done; a second SIGINT is not held."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def hold(number: int, frame: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hold) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
