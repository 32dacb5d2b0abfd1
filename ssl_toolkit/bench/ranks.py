"""The case ``ranks`` of ``bench criterion``: what one process computes and receives as their number grows, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from rich import box
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ssl_toolkit.bench.base import Counted
from ssl_toolkit.criteria import Matching, VICRegCriterion, matched_loss
from ssl_toolkit.errors import UserError


@dataclass
class RanksConfig:
    """Sizes of the case ``ranks``.

    Attributes:
        batch: images of all processes together; divisible by every number of processes.
        dim: of the global embeddings of two views.
        local_dim: of the local vectors.
        cells: of each view's map.
        gamma: slots kept by location; by feature every cell is kept, as the preset ``ours`` does.
        worlds: numbers of processes.
    """

    batch: int = 2048
    dim: int = 8192
    local_dim: int = 512
    cells: int = 49
    gamma: int = 20
    worlds: list[int] = field(default_factory=lambda: [1, 2, 8, 32])

    def __post_init__(self) -> None:
        if min(self.dim, self.local_dim, self.cells, self.gamma) < 1 or self.gamma > self.cells:
            raise ValueError("dim, local_dim, cells and gamma must be at least 1, gamma at most cells")
        for world in self.worlds:
            if world < 1 or self.batch % world or self.batch < 2:
                raise ValueError(f"batch {self.batch} must be 2 or more and divide by all of worlds, not by {world}")


class Count(NamedTuple):
    """Of one process and one loss, forward and backward: floating-point operations of its matrix products, and bytes
    it receives from the others."""

    flops: int
    bytes: int


class _Received(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what collectives bring in, an all-reduce as the ring it is made of: twice its size."""

    def __init__(self, world: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share = (world - 1) / world
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.__name__
            tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            times = 2 if "allreduce" in name else 1
            self.total += times * self.share * sum(t.nbytes for t in tensors)
            work = func(*args, **(kwargs or {}))
            if "allreduce" not in name:  # some versions of torch leave the make-believe result as it was
                for tensor in tensors:
                    tensor.zero_()
            return work
        return func(*args, **(kwargs or {}))


@contextmanager
def _processes(world: int) -> Iterator[None]:
    """Process 0 of ``world``, the others being make-believe: collectives return at once."""
    if world == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _baddbmm_flops(into: Any, a: Any, b: Any, **_: Any) -> int:
    """Of the in-place product, which torch's counter does not know. Arguments are shapes."""
    return 2 * int(a[0] * a[1] * a[2] * b[2])


def flop_counter() -> FlopCounterMode:
    """Counts the operations of all matrix products made under it, in-place ones too."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: _baddbmm_flops})


def count(world: int, step: Callable[[], Tensor]) -> Count:
    """Run ``step`` as one of ``world`` processes and count."""
    flops, received = flop_counter(), _Received(world)
    with _processes(world), received, flops:
        torch.autograd.backward(step())
    return Count(flops.get_total_flops(), round(received.total))


def _embeddings(batch: int, options: RanksConfig) -> Callable[[], Tensor]:
    z = [torch.randn(batch, options.dim, requires_grad=True) for _ in range(2)]
    return lambda: VICRegCriterion().views(z, 2).total


def _slots(options: RanksConfig) -> int:
    return 2 * (options.gamma + options.cells)


def _maps(batch: int, options: RanksConfig) -> Callable[[], Tensor]:
    maps = [torch.randn(batch, options.cells, options.local_dim, requires_grad=True) for _ in range(2)]
    every = torch.arange(options.cells).expand(batch, -1)
    kept = every[:, : options.gamma]
    matchings = [
        Matching(kind, x, y, query, key, 0.5)
        for x, y in ((0, 1), (1, 0))
        for kind, query, key in (("location", kept, kept), ("feature", None, every))
    ]
    return lambda: matched_loss(VICRegCriterion(), maps, matchings).total


def repeated(world: int, alone: Count, gathered: int) -> Count:
    """The usual way: every process gathers the joined batch and computes all of it; the gather's backward is an
    all-reduce of the gradient.

    Args:
        alone: what one process does for the joined batch.
        gathered: bytes of what is gathered.
    """
    share = (world - 1) / world
    return Count(alone.flops, round(3 * share * gathered))


class Row(NamedTuple):
    """One loss at one number of processes."""

    loss: str
    ranks: int
    shared: Count
    repeated: Count


def count_rows(options: RanksConfig) -> Iterator[Row]:
    """Global and local VICReg losses of two views at every number of processes."""
    losses: list[tuple[str, Callable[[int, RanksConfig], Callable[[], Tensor]], int]] = [
        ("global", _embeddings, 2 * options.batch * options.dim * 4),
        ("local", _maps, 2 * _slots(options) * options.batch * options.local_dim * 4),
    ]
    for loss, make, gathered in losses:
        alone = count(1, make(options.batch, options))
        for world in options.worlds:
            shared = alone if world == 1 else count(world, make(options.batch // world, options))
            yield Row(loss, world, shared, repeated(world, alone, gathered))


def table(rows: list[Row]) -> Table:
    """For a person: GFLOP and megabytes of one process."""
    result = Table(box=box.SIMPLE_HEAD, title="ranks: work of one process, forward and backward", title_justify="left")
    for name in ("loss", "processes", "GFLOP", "MB received", "GFLOP, repeated", "MB, repeated"):
        result.add_column(name, justify="left" if name == "loss" else "right")
    for row in rows:
        numbers = [
            text for c in (row.shared, row.repeated) for text in (f"{c.flops / 1e9:,.1f}", f"{c.bytes / 1e6:,.1f}")
        ]
        result.add_row(row.loss, str(row.ranks), *numbers)
    return result


def ranks_case(options: RanksConfig) -> Counted:
    """The counts, as the bench shows and keeps them; the same on every machine.

    Raises:
        UserError: in a process that is one of several already.
    """
    if dist.is_available() and dist.is_initialized():
        raise UserError("the case ranks counts what many processes would do: run it in one, not under torchrun")
    rows = list(count_rows(options))
    notes = [
        f"{options.batch} images of two views shared between the processes; global D {options.dim}, local "
        f"{_slots(options)} slots of {options.local_dim}. Repeated: every process gathers the joined batch and "
        "computes all of it.",
    ]
    values = [
        {"loss": r.loss, "ranks": r.ranks, "shared": r.shared._asdict(), "repeated": r.repeated._asdict()} for r in rows
    ]
    return Counted(table(rows), {"title": "ranks", "rows": values}, notes)
