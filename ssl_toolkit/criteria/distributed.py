"""The global batch: what every process holds, joined, and work on it shared out.

Nothing here builds a graph. Each process computes the exact gradient of the one loss of the joined batch with respect
to its own vectors, times the number of processes, so that the mean DDP takes over them is the gradient of that loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes; 1 where no process group exists."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def require_same(name: str, numbers: Sequence[int], device: torch.device) -> None:
    """Refuse shapes that differ between processes, on all of them, before a collective could hang on them.

    Args:
        name: of the argument, for the message.
        numbers: what must agree, the batch size first; as many on every process.

    Raises:
        ValueError: naming the processes and their numbers.
    """
    world = world_size()
    if world == 1:
        return
    found = torch.empty(world * len(numbers), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(found, torch.tensor(numbers, dtype=torch.int64, device=device))
    rows = found.view(world, -1).tolist()
    for other, row in enumerate(rows):
        if row[0] != rows[0][0]:
            raise ValueError(
                f"{name}: every process needs the same batch size, but process 0 has {rows[0][0]} and process {other} "
                f"has {row[0]}: drop the last, incomplete batch (drop_last) and give each process as many images"
            )
        if row != rows[0]:
            raise ValueError(f"{name}: shapes differ between processes: {rows[0]} in process 0, {row} in {other}")


def gather_rows(x: Tensor) -> Tensor:
    """``(B, D)`` of every process joined to ``(W * B, D)``, in rank order."""
    world = world_size()
    if world == 1:
        return x
    joined = x.new_empty(world * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(joined, x.contiguous())
    return joined


def sum_over_ranks(x: Tensor) -> Tensor:
    """``x`` added up over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def own_rows(batch: int) -> slice | None:
    """Where this process's rows lie in the joined batch; None where there is one process."""
    return None if world_size() == 1 else slice(rank() * batch, (rank() + 1) * batch)


def share_out(groups: int, start: int = 0) -> list[int]:
    """How many of ``groups`` each process takes; what does not divide goes to the processes from ``start`` on."""
    world = world_size()
    sizes = [groups // world] * world
    for extra in range(groups % world):
        sizes[(start + extra) % world] += 1
    return sizes


def to_owners(x: Tensor, sizes: list[int]) -> Tensor:
    """Groups ``(G, B, ...)`` of local rows to whole groups ``(G_own, W * B, ...)``, each on the process that owns it.

    Each process sends and receives about ``G * B`` rows however many processes there are; gathering the joined batch
    would receive W times as many.
    """
    world = world_size()
    if world == 1:
        return x
    own = sizes[rank()]
    received = x.new_empty(world * own, *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), [own] * world, sizes)
    return received.view(world, own, *x.shape[1:]).transpose(0, 1).flatten(1, 2)


def from_owners(x: Tensor, sizes: list[int]) -> Tensor:
    """The reverse of `to_owners`: ``(G_own, W * B, ...)`` to this process's rows of every group, ``(G, B, ...)``."""
    world = world_size()
    if world == 1:
        return x
    own = sizes[rank()]
    by_rank = x.reshape(own, world, x.shape[1] // world, *x.shape[2:]).transpose(0, 1).flatten(0, 1)
    received = x.new_empty(sum(sizes), *by_rank.shape[1:])
    dist.all_to_all_single(received, by_rank.contiguous(), sizes, [own] * world)
    return received
