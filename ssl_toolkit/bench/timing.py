"""Timing contenders against each other inside one process.

The same program drifts by 20% between processes and over minutes. Contenders therefore take turns, a ratio is made
from samples of the same rounds, and its range over the rounds is kept beside it.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ssl_toolkit.bench.base import Contender
from ssl_toolkit.bench.memory import extra_peak

SAMPLE_SECONDS = 0.1
"""A sample of a contender that is faster than this is the median of as many calls as fit in."""
MAX_REPEATS = 50


@dataclass
class Samples:
    """Of one contender: ``seconds[i]`` was taken in round ``rounds[i]``; ``extra_bytes`` is the peak of a call."""

    repeats: int = 1
    extra_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the samples in seconds."""
        return statistics.median(self.seconds)


class Ratio(NamedTuple):
    """Ratio of two contenders' medians over the rounds that both took part in, and the least and greatest ratio of a
    round."""

    median: float
    low: float
    high: float


def ratio(of: Samples, to: Samples) -> Ratio:
    """How many times longer ``of`` takes than ``to``. They must share a round."""
    reference = dict(zip(to.rounds, to.seconds))
    shared = [(seconds, reference[r]) for r, seconds in zip(of.rounds, of.seconds) if r in reference]
    each = [a / b for a, b in shared]
    medians = statistics.median(a for a, _ in shared) / statistics.median(b for _, b in shared)
    return Ratio(medians, min(each), max(each))


@dataclass(frozen=True)
class Timer:
    """Times single calls on ``device``, with the garbage collector off; ``clock`` counts seconds."""

    device: torch.device
    clock: Callable[[], float] = time.perf_counter

    def call(self, contender: Contender) -> tuple[float, Any]:
        """Seconds of one call, its preparation left out, and what it returned."""
        prepared = contender.prepare()
        self._synchronize()
        with _no_collection():
            start = self.clock()
            result = contender.call(prepared)
            self._synchronize()
            return self.clock() - start, result

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def probe(contender: Contender, timer: Timer) -> Samples:
    """One call for its memory, whose duration also says how many calls make a sample."""
    prepared = contender.prepare()

    def run() -> float:
        seconds, _ = timer.call(Contender(contender.name, contender.call, lambda: prepared))
        return seconds

    seconds, extra = extra_peak(timer.device, run)
    repeats = min(MAX_REPEATS, max(1, math.floor(SAMPLE_SECONDS / max(seconds, 1e-9))))
    return Samples(repeats, extra)


def alternate(
    contenders: Sequence[Contender],
    samples: dict[str, Samples],
    *,
    rounds: int,
    budget: float,
    timer: Timer,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Take a sample of each contender in each round, filling ``samples`` (from `probe`).

    The order rotates from round to round, so that none always follows the same other. A contender whose samples have
    taken ``budget`` seconds sits out the rest. ``advance`` is called once for each contender and round.
    """
    spent = dict.fromkeys(samples, 0.0)
    for number in range(rounds):
        gc.collect()
        shift = number % len(contenders)
        for contender in [*contenders[shift:], *contenders[:shift]]:
            mine = samples[contender.name]
            if spent[contender.name] < budget:
                calls = [timer.call(contender)[0] for _ in range(mine.repeats)]
                spent[contender.name] += sum(calls)
                mine.seconds.append(statistics.median(calls))
                mine.rounds.append(number)
            advance()
