"""Pretraining from a config: check everything, then train, then leave a run folder behind."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from ssl_toolkit.backbones import save_backbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import clear_leftovers
from ssl_toolkit.processes.launch import launch
from ssl_toolkit.processes.world import World, agree, console_of, from_first
from ssl_toolkit.training.checkpoints import LAST, OURS, checkpoint_names, checkpoint_path, read_checkpoint
from ssl_toolkit.training.describe import describe
from ssl_toolkit.training.examples import save_match_examples, save_view_examples
from ssl_toolkit.training.fingerprint import check_same, fingerprint, preprocessing
from ssl_toolkit.training.fit import train
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.training.parts import Parts, assemble, meet, resolved, starts_processes
from ssl_toolkit.training.run import WEIGHTS, default_name, locked, new_run_folder, write_run_files
from ssl_toolkit.training.saving import give_names

START, RESUME = "ssl_toolkit.training:start", "ssl_toolkit.training:resume"
"""What a process that is started does."""


def _finish(parts: Parts, module: Pretraining, run: Path) -> None:
    save_match_examples(
        run / "examples" / "matches.npz",
        parts.method,
        parts.dataset,
        parts.views,
        module.normalize,
        seed=parts.config.seed,
    )
    save_backbone(run / WEIGHTS, parts.method.backbone, preprocessing(parts.dataset))  # last: now it is finished


def pretrain(config: DictConfig, console: Console | None = None) -> Path:
    """Run a pretraining and return its folder.

    With ``trainer.devices`` above 1, or 0 on a machine with several GPUs, processes are started for it; where torchrun
    or srun has started them, each of them calls this.

    Args:
        config: composed from ``configs/pretrain.yaml``.

    Raises:
        UserError: something in the config or the data is wrong; said before any work where it can be known then.
        KeyboardInterrupt: stopped by the user; the checkpoint of the last step is kept.
    """
    config = resolved(config)
    meet(config)
    parts = agree(lambda: assemble(config))
    run = from_first(lambda: prepare(config, parts.world))
    if starts_processes(parts):
        launch(parts.world.size, START, run, config, quiet=console is not None and console.quiet)
        return run
    return _start(parts, run, console_of(parts.world, console))


def prepare(config: DictConfig, world: World) -> Path:
    """Make the folder of a run, with its config."""
    config.trainer.devices = world.local_size
    run = new_run_folder(Path(config.runs_dir), str(config.name or default_name(config)))
    write_run_files(run, config)
    return run


def start(run: Path, config: DictConfig, console: Console | None = None) -> Path:
    """Train a run whose folder is made, in this process; see `pretrain`."""
    meet(config)
    parts = agree(lambda: assemble(config))
    return _start(parts, run, console_of(parts.world, console))


def _start(parts: Parts, run: Path, console: Console) -> Path:
    describe(parts, console)
    console.print(f"  [bold]run[/bold]       {run}", highlight=False, soft_wrap=True)
    if parts.world.first:
        sheet = run / "examples" / "views.png"
        seed, size = parts.config.seed, parts.trainer.batch_size
        save_view_examples(sheet, parts.dataset, parts.views, seed=seed, batch_size=size)
        console.print(f"  [bold]sheet[/bold]     {sheet}", highlight=False, soft_wrap=True)
    return _train(parts, run, console, None, fingerprint(parts) if parts.world.first else {})


def resume(run: Path, config: DictConfig, console: Console | None = None) -> Path:
    """Continue a stopped run from its last checkpoint, or from the start where it was stopped before the first.

    On a CPU the run ends with the weights, to the bit, that it would have had without a stop.

    Args:
        config: of the run (`read_run_config`); keys that `is_free` may have other values.

    Raises:
        UserError: the folder is no run, the run is finished, or what its checkpoint remembers of config and data is not
            what there is now.
    """
    meet(config)
    if (run / WEIGHTS).exists():
        raise UserError(f"run={run} is finished; start a new run with init={run} to train on from its weights")
    checkpoint = from_first(lambda: checkpoint_to_resume(run))
    init = config.init
    if checkpoint is not None:
        config.init = None  # where the run began no longer matters, and may be gone
    parts = agree(lambda: assemble(config))
    parts.config.init = init
    if starts_processes(parts):
        launch(parts.world.size, RESUME, run, config, quiet=console is not None and console.quiet)
        return run
    console = console_of(parts.world, console)
    about = fingerprint(parts) if parts.world.first else {}
    notes = from_first(lambda: [] if checkpoint is None else check_checkpoint(checkpoint, about))
    describe(parts, console)
    console.print(f"  [bold]resuming[/bold]  {checkpoint or f'{run}, from the start'}", highlight=False, soft_wrap=True)
    if notes:
        said = f"numbers will differ in their last digits from those of a run without a stop: {'; '.join(notes)}"
        console.print(f"  [bold yellow]note[/bold yellow]      {said}", highlight=False, soft_wrap=True)
    return _train(parts, run, console, checkpoint, about)


def carry_on(run: Path, config: DictConfig, console: Console | None = None) -> Path:
    """Start a run whose folder is made, `resume` it, or leave it be where it is finished: what is left to do."""
    meet(config)
    finished, begun = from_first(lambda: ((run / WEIGHTS).exists(), checkpoint_to_resume(run) is not None))
    if finished:
        return run
    return (resume if begun else start)(run, config, console)


def checkpoint_to_resume(run: Path) -> Path | None:
    """``last`` of a run; None where nothing has been written yet."""
    return checkpoint_path(run, LAST) if checkpoint_names(run) else None


def check_checkpoint(path: Path, about: Mapping[str, Any]) -> list[str]:
    """Check that a run can go on from a checkpoint, see `check_same`; all its bytes are read.

    Raises:
        UserError: it is missing, damaged, or of another config or data.
    """
    return check_same(read_checkpoint(path, tensors=False)[OURS], about, path)


def _train(parts: Parts, run: Path, console: Console, checkpoint: Path | None, about: Mapping[str, Any]) -> Path:
    """Train what is checked, alone in its folder, and finish it."""
    with ExitStack() as stack:
        agree(lambda: stack.enter_context(locked(run)) if parts.world.first else None)
        if checkpoint is not None and parts.world.first:
            for folder in (run, checkpoint.parent):
                clear_leftovers(folder)
            give_names(run, read_checkpoint(checkpoint, tensors=False, verify=False)[OURS]["names"])
        module = train(parts, run, console, checkpoint, about)
        if parts.world.first:
            _finish(parts, module, run)
    return run
