"""``ssl-toolkit eval``: what is measured, on which data, by how many processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from ssl_toolkit import evaluation
from ssl_toolkit.config import compose_config, parse
from ssl_toolkit.errors import UserError
from ssl_toolkit.hardware import describe_hardware, pick_device, pick_precision
from ssl_toolkit.json_output import Emit, json_only
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
from ssl_toolkit.sources import source_config, source_of

MINI_DATA = ("digit_scenes",)
"""Data sets whose protocols are shortened unless asked otherwise: made for minutes on a CPU."""

EVAL_HOURS = 48.0
"""That processes wait for one that evaluates for all of them."""

EVALUATE = "ssl_toolkit.eval_commands:evaluate_started"


def evaluate(protocols: str, overrides: Sequence[str], console: Console, emit: Emit | None = None) -> int:
    """``ssl-toolkit eval``: protocols on a run, an exported backbone, or an untrained one.

    Args:
        emit: takes the results as JSON.
    """
    names = [name.strip() for name in protocols.split(",") if name.strip()]
    if any("=" in name for name in names):
        raise UserError(f"name the protocols first: ssl-toolkit eval knn,linear {protocols}")
    if any(parse(override).key_or_group == "protocol" for override in overrides):
        raise UserError("protocols are named first: ssl-toolkit eval knn,linear ...; knn.ks=[20] sets an option of one")
    config, data = eval_data_config(overrides)
    options = evaluation.eval_config(config)
    evaluation.chosen_protocols(names, options)  # before anything is started or downloaded
    device = pick_device(options.device)
    world = planned_world(options.devices, device)
    if world.size > 1 and told_world() is None:
        given = OmegaConf.create({"protocols": names, "overrides": list(overrides), "json": emit is not None})
        launch(world.size, EVALUATE, Path.cwd(), given, quiet=console.quiet)
        return 0
    join(world, process_device(device, world), hours=EVAL_HOURS)
    _evaluate(names, config, data, _scale_note(overrides, config), console_of(world, console), emit)
    leave()
    return 0


def evaluate_started(folder: Path, given: DictConfig, console: Console) -> None:
    """`evaluate` in one of the processes that it starts."""
    config, data = eval_data_config(given.overrides)
    world = current_world()
    join(world, process_device(pick_device(config.device), world), hours=EVAL_HOURS)
    scale = _scale_note(given.overrides, config)
    if not given.json:
        _evaluate(given.protocols, config, data, scale, console)
        return
    with json_only() as emit:
        _evaluate(given.protocols, config, data, scale, Console(stderr=True, quiet=console.quiet), emit)


def _evaluate(
    names: Sequence[str],
    config: DictConfig,
    data: DictConfig,
    scale: str,
    console: Console,
    emit: Emit | None = None,
) -> None:
    source, out = source_of(config, data)
    out = out if config.out is None else Path(config.out)
    _describe(names, source, data, config, scale, console)
    results = evaluation.evaluate(names, source, data, config, out, console)
    if emit is not None:
        if current_world().first:
            emit({"folder": out, "results": [result.as_dict() for result in results]})
        return
    console.print(evaluation.summary_table(results))
    for result in results:
        shown = evaluation.PROTOCOLS.entry(result.protocol).factory.shown  # type: ignore[attr-defined]
        if shown:
            console.print(evaluation.grid_table(result, shown))
    console.print(f"results  {out}", highlight=False, soft_wrap=True)


def _describe(
    names: Sequence[str],
    source: evaluation.Source,
    data: DictConfig,
    config: DictConfig,
    scale: str,
    console: Console,
) -> None:
    """What is about to run, before it does."""
    device = process_device(pick_device(config.device), current_world())
    chosen = evaluation.chosen_protocols(names, evaluation.eval_config(config))
    facts = {
        "evaluating": f"{source.name} ({source.backbone.config.name}) on {data.name}",
        "device": describe_hardware(device, pick_precision(config.precision, device)),
        "protocols": "; ".join(f"{name}: {protocol.describes}" for name, protocol in chosen.items()),
        "scale": scale,
    }
    for what, fact in facts.items():
        console.print(f"  [bold]{what:10}[/bold] {escape(fact)}", highlight=False, soft_wrap=True)


def _scale(data: DictConfig) -> str:
    """Which of ``configs/scale`` suits a data set."""
    return "mini" if data.name in MINI_DATA else "paper"


def _scale_note(overrides: Sequence[str], config: DictConfig) -> str:
    chosen = next((str(o.value()) for o in map(parse, overrides) if o.key_or_group == "scale"), None)
    if chosen is not None:
        return f"{chosen}, as asked"
    scale = _scale(config.data)
    other = "scale=paper for the papers' protocols" if scale == "mini" else "scale=mini shortens them"
    return f"{scale} for {config.data.name}; {other}"


def eval_data_config(overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """The eval config and the data to evaluate on; see `source_config`."""
    given = {parse(override).key_or_group for override in overrides}
    return source_config(overrides, lambda every: _scaled(every, given))


def _scaled(overrides: Sequence[str], given: set[str]) -> DictConfig:
    """The eval config at the scale that suits the data, where none is given."""
    config = compose_config("eval", overrides)
    return config if "scale" in given else compose_config("eval", [f"scale={_scale(config.data)}", *overrides])
