"""The processes that train together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ssl_toolkit.errors import UserError


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is.

    Attributes:
        rank, size: among all, on all machines.
        local_rank, local_size: among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.local_rank < self.local_size <= self.size and 0 <= self.rank < self.size):
            raise ValueError(f"not a process among others: {self}")
        if self.size % self.local_size:
            raise ValueError(
                f"{self.size} processes, {self.local_size} on this machine: machines must have as many each"
            )

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size


def current_world(environment: Mapping[str, str] = os.environ) -> World:
    """The world that torchrun tells of in its environment variables; alone where it tells of none.

    Raises:
        UserError: the variables contradict each other.
    """
    keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(key in environment for key in keys):
        return World()
    try:
        return World(*(int(environment[key]) for key in keys))
    except ValueError as error:
        told = ", ".join(f"{key}={environment[key]}" for key in keys)
        raise UserError(f"torchrun's environment is wrong ({told}): {error}") from error
