"""What a comparison measured: as a table for a person and as plain values for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_toolkit.bench.base import Comparison, Contender, Outcome
from ssl_toolkit.bench.timing import Ratio, Samples, ratio


class Agreement(NamedTuple):
    """Relative difference from the reference: of the value, and of all gradients together (l2 norm)."""

    value: float
    gradient: float


EXACT = 1e-9
"""Relative difference in float64, of value and gradient, above which two contenders do not do the same maths."""
FLOAT32 = Agreement(1e-3, 0.2)
"""The same at full size in float32, where a nearest neighbour that flips changes a slot or two."""


def agreement(outcome: Outcome, reference: Outcome) -> Agreement:
    """How far ``outcome`` is from ``reference``."""
    value = (outcome.value.double() - reference.value.double()).abs() / reference.value.double().abs()
    pairs = list(zip(outcome.gradients, reference.gradients, strict=True))
    difference = sum(float((a - b).double().square().sum()) for a, b in pairs)
    scale = sum(float(b.double().square().sum()) for _, b in pairs)
    return Agreement(float(value), (difference / scale) ** 0.5 if scale else float(difference > 0))


@dataclass
class Measured:
    """A comparison with its numbers.

    Attributes:
        samples: by contender, of those that ran.
        exact: agreement in float64 by contender, of those that should do the reference's maths (`Comparison.twin`).
        agreements: the same at full size.
        failures: by contender, why it has no samples.
        resident: bytes by contender, held between calls.
    """

    comparison: Comparison
    samples: dict[str, Samples] = field(default_factory=dict)
    exact: dict[str, Agreement] = field(default_factory=dict)
    agreements: dict[str, Agreement] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The contender that the others are divided by."""
        return self.comparison.contenders[0].name

    def other_maths(self, name: str) -> str:
        """Why a contender gets no ratio: its value or gradient is not the reference's; empty where it is."""
        limits = ((self.exact, Agreement(EXACT, EXACT), " in float64"), (self.agreements, FLOAT32, ""))
        for found, limit, where in limits:
            for kind in Agreement._fields if name in found else ():
                difference = getattr(found[name], kind)
                if not difference <= getattr(limit, kind):  # NaN too
                    return f"other maths: {kind} differs by {difference:.0e}{where}"
        return ""

    def time_ratio(self, name: str) -> Ratio | None:
        """Time relative to the reference; None for the reference, and where there is none to give."""
        both = name in self.samples and self.reference in self.samples
        if name == self.reference or not both or self.other_maths(name):
            return None
        return ratio(self.samples[name], self.samples[self.reference])

    def memory(self, name: str) -> int | None:
        """Bytes held between calls and the peak of a call above them."""
        samples = self.samples.get(name)
        if samples is None or samples.extra_bytes is None:
            return None
        return samples.extra_bytes + self.resident.get(name, 0)

    def memory_ratio(self, name: str) -> float | None:
        """Memory relative to the reference; None as for `time_ratio`."""
        mine, reference = self.memory(name), self.memory(self.reference)
        if name == self.reference or not mine or not reference or self.other_maths(name):
            return None
        return mine / reference

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "title": self.comparison.title,
            "reference": self.reference,
            "contenders": [self._row(contender) for contender in self.comparison.contenders],
            "notes": self.comparison.notes,
        }

    def _row(self, contender: Contender) -> dict[str, Any]:
        name = contender.name
        if name not in self.samples:
            return {"name": name, "absent": self.failures[name]}
        samples, times = self.samples[name], self.time_ratio(name)
        agreed, exact = self.agreements.get(name), self.exact.get(name)
        return {
            "name": name,
            "median_seconds": samples.median,
            "seconds": samples.seconds,
            "rounds": samples.rounds,
            "calls_a_sample": samples.repeats,
            "ratio": None if times is None else times._asdict(),
            "items_per_second": self.comparison.items and self.comparison.items / samples.median,
            "extra_bytes": samples.extra_bytes,
            "resident_bytes": self.resident.get(name, 0),
            "memory_ratio": self.memory_ratio(name),
            "same_maths": contender.same_maths and not self.other_maths(name),
            "agreement_float64": None if exact is None else exact._asdict(),
            "agreement": None if agreed is None else agreed._asdict(),
            "published": self.comparison.beside.get(name),
        }


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _factor(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * (value - 1):+.1f}%"
    return f"{value:.0f}x" if value >= 100 else f"{value:.3g}x"


def _range(times: Ratio, percent: bool) -> str:
    low, high = _factor(times.low, percent), _factor(times.high, percent)
    return f"{low[:-1]} to {high}" if percent else f"{low[:-1]}-{high}"


def _megabytes(size: int | None) -> str:
    if size is None:
        return "n/a"
    return f"{size / 1e6:,.0f}" if size >= 10e6 else f"{size / 1e6:.1f}"


def table(measured: Measured) -> Table:
    """Time and memory of each contender, and their ratios to the reference."""
    comparison, percent = measured.comparison, measured.comparison.percent
    title = Text(comparison.title)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    shown.add_column("")
    against = f"/ {measured.reference}"
    last = [] if comparison.items is None else ["images/s"]
    last += ["MB", against] if comparison.items is None or comparison.memory else []
    for heading in ("ms", "range", against, "range", *last, *(["paper"] if comparison.beside else [])):
        shown.add_column(heading, justify="right")
    for contender in comparison.contenders:
        name = contender.name
        if name not in measured.samples:
            shown.add_row(Text(name), "-")
            continue
        samples, times = measured.samples[name], measured.time_ratio(name)
        cells = [
            _milliseconds(samples.median),
            f"{_milliseconds(min(samples.seconds))}-{_milliseconds(max(samples.seconds))}",
            "" if times is None else _factor(times.median, percent),
            "" if times is None else _range(times, percent),
            *_last_cells(measured, name),
        ]
        shown.add_row(Text(name), *cells, *([comparison.beside.get(name, "")] if comparison.beside else []))
    return shown


def _last_cells(measured: Measured, name: str) -> list[str]:
    comparison = measured.comparison
    cells = [] if comparison.items is None else [f"{comparison.items / measured.samples[name].median:,.0f}"]
    if comparison.items is not None and not comparison.memory:
        return cells
    memory = measured.memory_ratio(name)
    return [*cells, _megabytes(measured.memory(name)), "" if memory is None else _factor(memory, comparison.percent)]


def notes(measured: Measured) -> list[str]:
    """Sentences under the table: who is absent, who agreed, who sat out rounds, and the comparison's own."""
    lines = [f"{name}: {why}." for name, why in measured.failures.items()]
    for name in [n for n in measured.samples if measured.other_maths(n)]:
        lines.append(f"{name}: {measured.other_maths(name)}, so no ratio is given.")
    checked = [n for n in {**measured.exact, **measured.agreements} if n in measured.samples]
    for name in [n for n in checked if not measured.other_maths(n)]:
        exact, here = measured.exact.get(name), measured.agreements.get(name)
        parts = [f"{max(exact):.0e} in float64"] if exact else []
        parts += [f"here value {here.value:.0e}, gradient {here.gradient:.0e}"] if here else []
        lines.append(f"{name}: same maths as {measured.reference}; relative difference {'; '.join(parts)}.")
    most = max((len(s.rounds) for s in measured.samples.values()), default=0)
    for name, samples in measured.samples.items():
        if len(samples.rounds) < most:
            lines.append(f"{name} took part in {len(samples.rounds)} of {most} rounds (budget).")
    return [*lines, *measured.comparison.notes]


def show(shown: Table, lines: list[str], console: Console) -> None:
    """Print a table and sentences under it."""
    console.print(shown)
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    console.print()
