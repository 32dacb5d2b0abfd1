"""What each command does, joining the parts that know nothing of each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.config import compose_config, expand, is_sweep, parse
from ssl_toolkit.errors import UserError
from ssl_toolkit.processes.world import (
    console_of,
    current_world,
    leave,
)
from ssl_toolkit.reporting.report import write_report
from ssl_toolkit.slurm_commands import slurm_options, submit_runs


def pretrain(overrides: Sequence[str], multirun: bool, console: Console) -> int:
    """``ssl-toolkit pretrain``: one run, one per combination with ``-m``, or the rest of a stopped one."""
    if multirun:
        return _sweep(overrides, console)
    if is_sweep(overrides):
        raise UserError("an option has several values; add -m for one run per combination")
    resumed = any(parse(override).key_or_group == "run" for override in overrides)
    config = _resumed_config(overrides) if resumed else compose_config("pretrain", overrides)
    if slurm_options(config) is not None:
        return submit_runs([config], Path(config.run) if resumed else None, console)
    run = training.resume(Path(config.run), config, console) if resumed else training.pretrain(config, console)
    if current_world().first:
        write_report(run)
        _where(run, console)
    leave()
    return 0


def _where(run: Path, console: Console) -> None:
    console.print(
        f"\nweights  {run / 'backbone.safetensors'}\nreport   {run / 'report.html'}\n"
        f"next     ssl-toolkit eval knn,linear run={run}",
        highlight=False,
        soft_wrap=True,
    )


def _resumed_config(overrides: Sequence[str]) -> DictConfig:
    """The config of the run that ``run=`` names, with what else may be given."""
    keys = [parse(override).key_or_group for override in overrides]
    run = Path(str(next(parse(o).value() for o, key in zip(overrides, keys) if key == "run")))
    saved = training.read_run_config(run)
    for key in keys:
        if key != "run" and not training.is_free(key):
            raise UserError(
                f"{key} cannot be given with run=: a resumed run keeps its config ({run / 'config.yaml'}); "
                f"use init={run} to start a new run from its weights"
            )
    data = [f"data={saved.data.name}"] if any(key.startswith("data.") for key in keys) else []
    config = compose_config("pretrain", [*data, *overrides])
    for key in keys:
        OmegaConf.update(saved, key, OmegaConf.select(config, key))
    return saved


def _sweep(overrides: Sequence[str], console: Console) -> int:
    jobs = expand(overrides)
    configs = [compose_config("pretrain", job) for job in jobs]
    for config, job in zip(configs, jobs):
        config.name = training.sweep_name(config, [part for part in job if part not in overrides])
    if any(slurm_options(config) is not None for config in configs):
        return submit_runs(configs, None, console)
    for config in configs:  # all of them before any work is done
        training.assemble(config.copy())
    world = current_world()
    console = console_of(world, console)
    finished, failed = [], []
    for number, (config, job) in enumerate(zip(configs, jobs), 1):
        console.rule(f"{number} of {len(jobs)}: {' '.join(job)}")
        try:
            run = training.pretrain(config, console)
            if world.first:
                write_report(run)
            finished.append(run)
        except UserError as error:
            if world.size > 1:  # the others may not know of it
                raise
            failed.append(f"{' '.join(job)}: {error}")
            console.print(f"failed: {error}", highlight=False, markup=False, soft_wrap=True)
    if finished:
        names = " ".join(map(str, finished))
        console.print(f"\nruns     {names}\nnext     ssl-toolkit compare {names}", highlight=False, soft_wrap=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed; the first: {failed[0]}")
    leave()
    return 0


def replay(file: str, console: Console) -> int:
    """``ssl-toolkit replay``: see `ssl_toolkit.training.replay`."""
    training.replay(Path(file), console)
    return 0


def bench(suite: str, overrides: Sequence[str], console: Console) -> int:
    """``ssl-toolkit bench``: see `ssl_toolkit.bench`."""
    from ssl_toolkit.bench import bench as run_bench

    if "=" in suite:
        raise UserError(f"name the suite first: ssl-toolkit bench criterion {suite}")
    out = run_bench(suite, overrides, console)
    console.print(f"samples  {out}", highlight=False, soft_wrap=True)
    return 0


def demo(overrides: Sequence[str], console: Console) -> int:
    """``ssl-toolkit demo``: see `ssl_toolkit.demo`."""
    from ssl_toolkit.demo import run_demo

    run_demo(overrides, console)
    return 0
