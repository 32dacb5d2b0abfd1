"""What each command does, joining the parts that know nothing of each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit import evaluation, training
from ssl_toolkit.backbones import BackboneConfig
from ssl_toolkit.config import compose_config, expand, is_sweep, parse
from ssl_toolkit.errors import UserError
from ssl_toolkit.hardware import pick_device
from ssl_toolkit.processes.launch import launch
from ssl_toolkit.processes.world import (
    console_of,
    current_world,
    join,
    leave,
    planned_world,
    process_device,
    told_world,
)
from ssl_toolkit.registry import typed
from ssl_toolkit.reporting.compare import compare as compare_runs
from ssl_toolkit.reporting.report import write_comparison_report, write_report
from ssl_toolkit.slurm_commands import slurm_options, submit_runs

MINI_PIXELS = 96
"""Side of evaluated images up to which protocols are shortened: a tenth of the pixels of the papers'."""

EVAL_HOURS = 48.0
"""That processes wait for one that evaluates for all of them."""

EVALUATE = "ssl_toolkit.commands:evaluate_started"


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


def export(run: str, checkpoint: str, out: str | None, console: Console) -> int:
    """``ssl-toolkit export``: the backbone in a checkpoint, as a file of its own."""
    path = training.export(Path(run), checkpoint, None if out is None else Path(out))
    console.print(f"weights  {path}", highlight=False, soft_wrap=True)
    return 0


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


def evaluate(protocols: str, overrides: Sequence[str], console: Console) -> int:
    """``ssl-toolkit eval``: protocols on a run, an exported backbone, or an untrained one."""
    names = [name.strip() for name in protocols.split(",") if name.strip()]
    if any("=" in name for name in names):
        raise UserError(f"name the protocols first: ssl-toolkit eval knn,linear {protocols}")
    config, _ = _eval_config(overrides)
    options = evaluation.eval_config(config)
    device = pick_device(options.device)
    world = planned_world(options.devices, device)
    if world.size > 1 and told_world() is None:
        given = OmegaConf.create({"protocols": names, "overrides": list(overrides)})
        launch(world.size, EVALUATE, Path.cwd(), given, quiet=console.quiet)
        return 0
    join(world, process_device(device, world), hours=EVAL_HOURS)
    _evaluate(names, overrides, console_of(world, console))
    leave()
    return 0


def evaluate_started(folder: Path, given: DictConfig, console: Console) -> None:
    """`evaluate` in one of the processes that it starts."""
    world = current_world()
    options = evaluation.eval_config(_eval_config(given.overrides)[0])
    join(world, process_device(pick_device(options.device), world), hours=EVAL_HOURS)
    _evaluate(given.protocols, given.overrides, console)


def _evaluate(names: Sequence[str], overrides: Sequence[str], console: Console) -> None:
    config, data = _eval_config(overrides)
    source, out = _eval_source(config, data)
    console.print(f"scale    {_scale_note(overrides, config)}", highlight=False, soft_wrap=True)
    results = evaluation.evaluate(names, source, data, config, out, console)
    console.print(evaluation.summary_table(results))
    console.print(f"results  {out}", highlight=False, soft_wrap=True)


def _scale(data: DictConfig) -> str:
    """Which of ``configs/scale`` suits a data set."""
    return "mini" if data.eval_size <= MINI_PIXELS else "paper"


def _scale_note(overrides: Sequence[str], config: DictConfig) -> str:
    chosen = next((str(o.value()) for o in map(parse, overrides) if o.key_or_group == "scale"), None)
    if chosen is not None:
        return f"{chosen}, as asked"
    return f"{_scale(config.data)}: images are {config.data.eval_size} px; scale=paper or scale=mini decides otherwise"


def _eval_config(overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """The eval config and the data to evaluate on: the group ``data=``, else the run's own with its overrides."""
    parsed = [parse(override) for override in overrides]
    given = {o.key_or_group for o in parsed}
    if "data" in given:
        config = _scaled(overrides, given)
        return config, config.data
    plain = [o.input_line for o in parsed if not o.key_or_group.startswith("data.") and o.input_line]
    config = compose_config("eval", plain)
    if config.run is None:
        raise UserError("say what to evaluate on: data=digit_scenes, or data=folder data.root=PATH")
    saved = training.read_run_config(Path(config.run)).data
    data_name = f"data={saved.name}"
    size = f"data.eval_size={saved.eval_size}"
    config = _scaled([data_name, *([] if "data.eval_size" in given else [size]), *overrides], given)
    data = saved.copy()
    for key in given:
        if key.startswith("data."):
            OmegaConf.update(data, key.removeprefix("data."), OmegaConf.select(config, key))
    return config, data


def _scaled(overrides: Sequence[str], given: set[str]) -> DictConfig:
    """The eval config at the scale that suits the data, where none is given."""
    config = compose_config("eval", overrides)
    return config if "scale" in given else compose_config("eval", [f"scale={_scale(config.data)}", *overrides])


def _eval_source(config: DictConfig, data: DictConfig) -> tuple[evaluation.Source, Path]:
    """What is evaluated, and the folder for its results."""
    backbone = config.get("backbone")
    expect = None if backbone is None else typed(BackboneConfig, backbone, "backbone")
    if config.run is not None and config.checkpoint is not None:
        raise UserError("give run= or checkpoint=, not both")
    if config.run is not None:
        run = Path(config.run)
        source, out = evaluation.run_source(run, expect), run / "results"
    elif config.checkpoint is not None:
        path = Path(config.checkpoint)
        source, out = evaluation.file_source(path, expect), path.parent / f"{path.stem}-results"
    elif expect is not None:
        source = evaluation.untrained_source(expect, data, config.seed)
        out = Path(f"untrained-{expect.name}-results")
    else:
        raise UserError("say what to evaluate: run=FOLDER, checkpoint=FILE, or backbone=NAME for an untrained one")
    return source, Path(config.out) if config.out is not None else out


def replay(file: str, console: Console) -> int:
    """``ssl-toolkit replay``: see `ssl_toolkit.training.replay`."""
    training.replay(Path(file), console)
    return 0


def compare(runs: Sequence[str], html: str | None, csv: str | None, markdown: str | None, console: Console) -> int:
    """``ssl-toolkit compare``: a table of results and of what differs in the configs."""
    comparison = compare_runs(runs)
    comparison.print(console)
    if csv:
        comparison.write_csv(Path(csv))
    if markdown:
        comparison.write_markdown(Path(markdown))
    if html:
        write_comparison_report([Path(run) for run in runs], Path(html), "Comparison of runs", "")
    for path in filter(None, (csv, markdown, html)):
        console.print(f"written  {path}", highlight=False, soft_wrap=True)
    return 0


def report(run: str, console: Console) -> int:
    """``ssl-toolkit report``: rebuild the report of a run from its files."""
    console.print(f"report   {write_report(Path(run))}", highlight=False, soft_wrap=True)
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
