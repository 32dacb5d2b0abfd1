"""Running a suite: say what will run, measure each comparison, show it, keep every sample."""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit.bench import lightly_losses
from ssl_toolkit.bench.base import SUITES, BenchConfig, Comparison, Contender, Counted, Outcome
from ssl_toolkit.bench.report import Agreement, Measured, agreement, notes, show, table
from ssl_toolkit.bench.timing import Timer, alternate, probe
from ssl_toolkit.config import compose_config, parse
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import write_json
from ssl_toolkit.hardware import describe_hardware, pick_device
from ssl_toolkit.progress import Bar, progress_bar
from ssl_toolkit.registry import typed
from ssl_toolkit.training.run import environment


def suite_options(name: str, overrides: Sequence[str]) -> BenchConfig:
    """The checked options of suite ``name`` from ``configs/bench_<name>.yaml`` and ``overrides``.

    A list may be given as ``cases=A,B`` or ``cases=A``.

    Raises:
        UserError: an unknown suite or key, or a value of the wrong type or out of range.
    """
    entry = SUITES.entry(name)
    config = f"bench_{name}"
    defaults = compose_config(config)
    listed = [_as_list(override, defaults) for override in overrides]
    options: BenchConfig = typed(entry.schema, compose_config(config, listed), "bench")
    return options


def _as_list(override: str, defaults: DictConfig) -> str:
    parsed = parse(override)
    key = parsed.key_or_group
    if not OmegaConf.is_list(OmegaConf.select(defaults, key, default=None)):
        if parsed.is_sweep_override():
            raise UserError(f"{key} takes one value: a bench does not sweep")
        return override
    if parsed.is_sweep_override():
        return f"{key}=[{','.join(parsed.sweep_string_iterator())}]"
    value = parsed.value()
    return override if value is None or isinstance(value, list) else f"{key}=[{parsed.get_value_element_as_str()}]"


def bench(name: str, overrides: Sequence[str], console: Console) -> Path:
    """Run suite ``name``; returns the JSON file with its samples, which is rewritten after every comparison.

    Raises:
        UserError: bad input, said before anything is timed.
    """
    options = suite_options(name, overrides)
    out = _writable(Path(options.out if options.out is not None else f"bench-{name}.json"))
    with _threads(options.threads), _small_heap():
        device = pick_device(options.device)
        suite = SUITES.entry(name).factory(options, device=device)
        machine = _machine(device)
        rows = [
            ("bench", name),
            *suite.facts,
            ("device", f"{_where(device)}, torch {torch.__version__}"),
            *_load(),
        ]
        for key, text in rows:
            console.print(f"  [bold]{key:<9}[/bold] {text}", highlight=False, soft_wrap=True)
        console.print()
        results: list[dict[str, Any]] = []
        for comparison in suite.comparisons:
            if isinstance(comparison, Counted):
                show(comparison.table, comparison.notes, console)
                results.append(comparison.values)
            else:
                measured = measure(comparison, options, Timer(device), console)
                show(table(measured), notes(measured), console)
                results.append(measured.as_dict())
            write_json(out, {"suite": name, **machine, "options": _plain(options), "comparisons": results})
    return out


def measure(comparison: Comparison, options: BenchConfig, timer: Timer, console: Console) -> Measured:
    """Check that all do the same maths, warm up each, take its memory, then let them take turns."""
    measured = Measured(comparison, exact=_exact_agreements(comparison.twin))
    able = [c for c in comparison.contenders if not c.absent]
    measured.failures = {c.name: c.absent for c in comparison.contenders if c.absent}
    name = comparison.title.split(":")[0]
    with progress_bar(name, len(able) * (options.rounds + 2), "samples", console=console) as bar:
        able = _warm_up(able, measured, timer, options.rounds, bar)
        for contender in able:
            bar.advance(0, note=f"memory of {contender.name}")
            measured.samples[contender.name] = probe(contender, timer)
            measured.resident[contender.name] = contender.resident()
            bar.advance(note="")
        alternate(
            able, measured.samples, rounds=options.rounds, budget=options.budget, timer=timer, advance=bar.advance
        )
    return measured


def _exact_agreements(twin: Comparison | None) -> dict[str, Agreement]:
    """How far the contenders of ``twin`` that should do the same maths are from the first."""
    if twin is None:
        return {}
    outcomes = {c.name: c.call(c.prepare()) for c in twin.contenders if c.same_maths and not c.absent}
    reference = outcomes.pop(twin.contenders[0].name)
    assert reference is not None
    return {name: agreement(outcome, reference) for name, outcome in outcomes.items() if outcome is not None}


def _warm_up(able: list[Contender], measured: Measured, timer: Timer, rounds: int, bar: Bar) -> list[Contender]:
    """One call of each, whose outcome is compared and whose time is thrown away; returns those that can go on."""
    kept, reference = [], None
    for position, contender in enumerate(able):
        bar.advance(0, note=f"warm-up of {contender.name}")
        try:
            outcome = timer.call(contender)[1]
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            measured.failures[contender.name] = "out of memory"
            bar.advance(rounds + 2)
            continue
        bar.advance()
        kept.append(contender)
        if isinstance(outcome, Outcome) and position == 0:
            reference = outcome
        elif isinstance(outcome, Outcome) and reference is not None and contender.same_maths:
            measured.agreements[contender.name] = agreement(outcome, reference)
    gc.collect()
    return kept


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """CPU threads of torch for the length of a block."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _small_heap() -> Iterator[None]:
    """Keep the garbage collector off what exists now, so that collecting between rounds takes no time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _writable(path: Path) -> Path:
    """Refuse what cannot be written before minutes are spent on it."""
    if path.is_dir():
        raise UserError(f"out={path} is a folder; name a file")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"out={path} cannot be written: {folder} is not a folder that you may write to")
    return path


def _where(device: torch.device) -> str:
    """The device without the remark on precision, which the suites choose."""
    return describe_hardware(device, torch.float32).rsplit(", fp32", 1)[0]


def _load() -> list[tuple[str, str]]:
    """What else runs here, where the system tells."""
    if not hasattr(os, "getloadavg"):
        return []
    load = f"{os.getloadavg()[0]:.1f} in the last minute, on {os.cpu_count()} CPUs"
    return [("load", f"{load}; what others run beside a bench is in its figures")]


def _machine(device: torch.device) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    machine = {"device": _where(device), **environment(), "lightly": lightly_losses.version()}
    machine["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    machine |= dict(_load())
    return {"created": now, "environment": machine}


def _plain(options: BenchConfig) -> Any:
    return OmegaConf.to_container(OmegaConf.structured(options))
