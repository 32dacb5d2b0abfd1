"""``ssl-toolkit pretrain launcher=slurm``: check runs here, make their folders, hand them to SLURM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.processes.world import current_world, leave
from ssl_toolkit.registry import typed
from ssl_toolkit.reporting.report import write_report
from ssl_toolkit.training.options import TrainerConfig
from ssl_toolkit.training.slurm import Job, SlurmConfig, check_slurm, job_folder, script, submit


def slurm_options(config: DictConfig) -> SlurmConfig | None:
    """The options of ``launcher=slurm``; None where runs are trained here.

    Raises:
        UserError: an unknown key or value.
    """
    values: Any = OmegaConf.to_container(config.get("launcher") or OmegaConf.create({"name": "local"}))
    name = values.pop("name", None)
    if name == "slurm":
        return typed(SlurmConfig, values, "launcher")
    if name != "local":
        raise unknown("launcher", str(name), ["local", "slurm"])
    return None


def submit_runs(configs: Sequence[DictConfig], run: Path | None, console: Console) -> int:
    """Queue new runs, or the rest of ``run``; see ``configs/launcher/slurm.yaml``.

    Raises:
        UserError: a config is wrong, they ask for different machines, or SLURM does not take them.
    """
    options, trainer = _shared(configs)
    world = options.world(trainer)
    resolved = [training.resolved(config) for config in configs]
    for config in resolved:  # all of them before anything is made
        training.assemble(config.copy(), world)
    root = Path(configs[0].runs_dir)
    if options.dry_run:
        folder = (run or root / str(configs[0].name or "NAME")) / "slurm" if len(configs) == 1 else job_folder(root)
        print(script(options, trainer, folder, len(configs)))
        return 0
    check_slurm(options, trainer)
    runs = [run] if run is not None else [training.prepare(config, world) for config in resolved]
    folder = runs[0] / "slurm" if len(runs) == 1 else job_folder(root)
    jobs = [
        Job(partial(train_and_report, path.absolute(), OmegaConf.to_yaml(config, resolve=True)))
        for path, config in zip(runs, resolved)
    ]
    again = f"submit again with: ssl-toolkit pretrain run={runs[0]} launcher=slurm"
    ids = submit(jobs, options, trainer, folder, again)
    for number, path in zip(ids, runs):
        console.print(f"job      {number}: {path}", highlight=False, soft_wrap=True)
    console.print(f"logs     {folder}", highlight=False, soft_wrap=True)
    return 0


def train_and_report(run: Path, config: str) -> None:
    """What is left to do of a run, in one of the processes of its job.

    Args:
        config: YAML.
    """
    given: Any = OmegaConf.create(config)
    training.carry_on(run, given, Console())
    leave()
    if current_world().first:
        write_report(run)


def _shared(configs: Sequence[DictConfig]) -> tuple[SlurmConfig, TrainerConfig]:
    """What all runs ask of SLURM."""
    found = []
    for config in configs:
        options = slurm_options(config)
        trainer = typed(TrainerConfig, config.trainer, "trainer")
        if options is None:
            raise UserError("launcher: the runs of a sweep are all trained here or all submitted")
        found.append((options, trainer))
    first = found[0][0].resources(found[0][1])
    if any(options != found[0][0] or options.resources(trainer) != first for options, trainer in found):
        raise UserError(
            "the runs of a sweep are one job array and ask for the same machines: launcher.*, trainer.devices, "
            "trainer.device and trainer.workers cannot be swept"
        )
    return found[0]
