"""Pretraining from a config: check everything, then train, then leave a run folder behind."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from ssl_toolkit.backbones import save_backbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.examples import save_match_examples, save_view_examples
from ssl_toolkit.training.fit import train
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.training.parts import Parts, assemble, describe, resolved
from ssl_toolkit.training.run import default_name, new_run_folder, write_run_files


def _finish(parts: Parts, module: Pretraining, run: Path) -> None:
    stats = parts.dataset.config
    save_backbone(
        run / "backbone.safetensors",
        parts.method.backbone,
        {
            "mean": list(stats.mean),
            "std": list(stats.std),
            "eval_resize": stats.eval_resize,
            "eval_size": stats.eval_size,
        },
    )
    save_match_examples(
        run / "examples" / "matches.npz",
        parts.method,
        parts.dataset,
        parts.views,
        module.normalize,
        seed=parts.config.seed,
    )


def pretrain(config: DictConfig, console: Console | None = None) -> Path:
    """Run a pretraining and return its folder.

    Args:
        config: composed from ``configs/pretrain.yaml``.

    Raises:
        UserError: something in the config or the data is wrong; said before any work where it can be known then.
        KeyboardInterrupt: stopped by the user; the checkpoint of the last step is kept.
    """
    console = console or Console()
    config = resolved(config)
    parts = assemble(config)
    run = new_run_folder(Path(config.runs_dir), str(config.name or default_name(config)))
    write_run_files(run, config)
    describe(parts, console)
    console.print(f"  [bold]run[/bold]       {run}", highlight=False, soft_wrap=True)
    sheet = run / "examples" / "views.png"
    save_view_examples(sheet, parts.dataset, parts.views, seed=config.seed, batch_size=parts.trainer.batch_size)
    console.print(f"  [bold]sheet[/bold]     {sheet}", highlight=False, soft_wrap=True)
    module = train(parts, run, console, None)
    _finish(parts, module, run)
    return run


def resume(run: Path, config: DictConfig, console: Console | None = None) -> Path:
    """Continue a stopped run from its last checkpoint, under its own config.

    Raises:
        UserError: the folder is no run, has no checkpoint, or is finished.
    """
    console = console or Console()
    checkpoint = run / "checkpoints" / "last.ckpt"
    if (run / "backbone.safetensors").exists():
        raise UserError(f"run={run} is finished; start a new run with init={run} to train on from its weights")
    if not checkpoint.is_file():
        raise UserError(f"run={run} has no checkpoints/last.ckpt: it stopped before its first checkpoint")
    parts = assemble(config)
    describe(parts, console)
    console.print(f"  [bold]resuming[/bold]  {checkpoint}", highlight=False, soft_wrap=True)
    module = train(parts, run, console, checkpoint)
    _finish(parts, module, run)
    return run
