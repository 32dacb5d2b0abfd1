"""What each command does, joining the parts that know nothing of each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit import evaluation, reporting, training
from ssl_toolkit.config import compose_config, is_sweep, parse
from ssl_toolkit.errors import UserError

# What may differ when a run is resumed: how fast it goes, not what it computes.
RESUMABLE = ("trainer.workers", "trainer.log_every")


def pretrain(overrides: Sequence[str], multirun: bool, console: Console) -> int:
    """``ssl-toolkit pretrain``: one run, one per combination with ``-m``, or the rest of a stopped one."""
    if multirun:
        return _sweep(overrides, console)
    if is_sweep(overrides):
        raise UserError("an option has several values; add -m for one run per combination")
    config = compose_config("pretrain", overrides)
    run = _resume(config, overrides, console) if config.run else training.pretrain(config, console)
    reporting.write_report(run)
    _where(run, console)
    return 0


def _where(run: Path, console: Console) -> None:
    console.print(
        f"\nweights  {run / 'backbone.safetensors'}\nreport   {run / 'report.html'}\n"
        f"next     ssl-toolkit eval knn,linear run={run}",
        highlight=False,
        soft_wrap=True,
    )


def _resume(config: DictConfig, overrides: Sequence[str], console: Console) -> Path:
    run = Path(config.run)
    saved = training.read_run_config(run)
    for override in overrides:
        key = parse(override).key_or_group
        if key in RESUMABLE:
            OmegaConf.update(saved, key, OmegaConf.select(config, key))
        elif key != "run":
            raise UserError(
                f"{key} cannot be given with run=: a resumed run keeps its config ({run / 'config.yaml'}); "
                f"use init={run} to start a new run from its weights"
            )
    return training.resume(run, saved, console)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of a sweep, as Hydra's basic sweeper makes them."""
    lists = []
    for override in overrides:
        parsed = parse(override)
        key = parsed.get_key_element()
        lists.append(
            [f"{key}={value}" for value in parsed.sweep_string_iterator()]
            if parsed.is_sweep_override()
            else [override]
        )
    return [list(job) for job in itertools.product(*lists)]


def _sweep(overrides: Sequence[str], console: Console) -> int:
    jobs = expand(overrides)
    for job in jobs:  # all of them before any work is done
        training.assemble(compose_config("pretrain", job))
    finished, failed = [], []
    for number, job in enumerate(jobs, 1):
        console.rule(f"{number} of {len(jobs)}: {' '.join(job)}")
        try:
            run = training.pretrain(compose_config("pretrain", job), console)
            reporting.write_report(run)
            finished.append(run)
        except UserError as error:
            failed.append(f"{' '.join(job)}: {error}")
            console.print(f"failed: {error}", highlight=False, markup=False, soft_wrap=True)
    if finished:
        names = " ".join(map(str, finished))
        console.print(
            f"\nruns     {names}\nnext     ssl-toolkit compare {names}", highlight=False, soft_wrap=True
        )
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed; the first: {failed[0]}")
    return 0


def evaluate(protocols: str, overrides: Sequence[str], console: Console) -> int:
    """``ssl-toolkit eval``: protocols on a run, an exported backbone, or an untrained one."""
    names = [name.strip() for name in protocols.split(",") if name.strip()]
    if any("=" in name for name in names):
        raise UserError(f"name the protocols first: ssl-toolkit eval knn,linear {protocols}")
    config = compose_config("eval", overrides)
    source, data, out = evaluation.load_source(config, given=[parse(o).key_or_group for o in overrides])
    results = evaluation.evaluate(names, source, data, config, out)
    console.print(evaluation.summary_table(results))
    console.print(f"results  {out}", highlight=False, soft_wrap=True)
    return 0


def compare(
    runs: Sequence[str], html: str | None, csv: str | None, markdown: str | None, console: Console
) -> int:
    """``ssl-toolkit compare``: a table of results and of what differs in the configs."""
    raise NotImplementedError


def report(run: str, console: Console) -> int:
    """``ssl-toolkit report``: rebuild the report of a run from its files."""
    console.print(f"report   {reporting.write_report(Path(run))}", highlight=False, soft_wrap=True)
    return 0


def demo(overrides: Sequence[str], console: Console) -> int:
    """``ssl-toolkit demo``: see `ssl_toolkit.demo`."""
    from ssl_toolkit.demo import run_demo

    run_demo(overrides, console)
    return 0
