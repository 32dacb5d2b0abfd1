"""What a bench suite is: comparisons of contenders that do the same work, and options that all suites share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.table import Table
from torch import Tensor

from ssl_toolkit.registry import Registry


@dataclass
class BenchConfig:
    """Options of every suite.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: of the CPU; None leaves torch's choice.
        rounds: samples of each contender; in a round each gives one.
        budget: seconds after which a slow contender sits out the remaining rounds; it takes part in at least one.
        seed: of the random inputs.
        out: JSON file with every sample; None writes ``bench-<suite>.json`` in the working folder.
    """

    device: str = "auto"
    threads: int | None = None
    rounds: int = 5
    budget: float = 20.0
    seed: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1 or null, not {self.threads}")
        if self.budget <= 0:
            raise ValueError(f"budget must be a positive number of seconds, not {self.budget}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")

    def turns(self) -> tuple[str, str]:
        """A fact for suites that time: how."""
        return "timing", f"contenders take turns, {self.rounds} rounds, about {self.budget:g} s for each at most"


class Outcome(NamedTuple):
    """What a contender computed, for checking that all computed the same: a scalar and the inputs' gradients."""

    value: Tensor
    gradients: list[Tensor]


def _nothing() -> None:
    return None


def _no_bytes() -> int:
    return 0


@dataclass(frozen=True)
class Contender:
    """One of the things compared.

    Attributes:
        name: as shown; unique in its comparison.
        call: the timed part, given what ``prepare`` returned. An `Outcome` is checked against the reference's.
        prepare: the untimed part before every call (fresh inputs).
        resident: bytes it holds between calls (weights, optimizer state), added to the peak of a call.
        same_maths: False for a contender that computes something else on purpose: it is timed and not checked.
        absent: why it cannot run on this machine, shown in place of figures; empty where it can.
    """

    name: str
    call: Callable[[Any], Outcome | None]
    prepare: Callable[[], Any] = _nothing
    resident: Callable[[], int] = _no_bytes
    same_maths: bool = True
    absent: str = ""


@dataclass(frozen=True)
class Comparison:
    """Contenders on the same inputs. The first one is the reference, which the others are divided by.

    Attributes:
        title: one line, sizes included.
        percent: show ratios as ``+4.1%`` in place of ``1.04x``.
        beside: published figures by contender, shown in a column of their own.
        notes: sentences under the table.
        items: images that a call works on; throughput is then shown in place of memory.
        memory: show memory beside throughput.
        twin: the same contenders on small float64 inputs on the CPU, where those of the same maths must agree to
            rounding. At full size and in float32 a nearest neighbour may flip, which says nothing.
    """

    title: str
    contenders: list[Contender]
    percent: bool = False
    beside: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    items: int | None = None
    memory: bool = False
    twin: Comparison | None = None


@dataclass(frozen=True)
class Counted:
    """Numbers that need no timing: shown as ``table`` with ``notes`` under it, kept in the JSON as ``values``."""

    table: Table
    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Suite:
    """What a suite will run. Bad options must be refused before this is returned.

    Attributes:
        facts: printed first, as name and text.
        comparisons: made one at a time, so that the memory of one is free before the next.
    """

    facts: list[tuple[str, str]]
    comparisons: Iterator[Comparison | Counted]


SUITES: Registry[Suite] = Registry("bench suite")
"""Suites by name, called as ``factory(options, device=...)``; the options are ``configs/bench_<name>.yaml``."""
