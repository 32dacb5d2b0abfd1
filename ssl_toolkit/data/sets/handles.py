"""Open files that are safe with worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Something opened on first use, anew in each process: it is never pickled, and never used across a fork.

    Args:
        open: opens it; must itself be fit for pickling.
        forks: it may be used across a fork after all.
    """

    def __init__(self, open: Callable[[], T], forks: bool = False) -> None:
        self._open = open
        self._forks = forks
        self._owner: int | None = None
        self._value: T | None = None

    def get(self) -> T:
        """The thing, opened by this process."""
        if self._owner is None or (self._owner != os.getpid() and not self._forks):
            self._value = None  # closed first: HDF5 gives a file that is still open the same handle again
            self._value = self._open()
            self._owner = os.getpid()
        return self._value  # type: ignore[return-value]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_owner": None, "_value": None}
