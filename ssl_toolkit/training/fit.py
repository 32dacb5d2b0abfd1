"""Training itself: Lightning, set up for one run."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf
from rich.console import Console

from ssl_toolkit.errors import Terminated
from ssl_toolkit.methods import Method
from ssl_toolkit.training.callbacks import UnreadableFile
from ssl_toolkit.training.checkpoints import CheckpointFiles
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.training.monitors import run_callbacks
from ssl_toolkit.training.parts import Parts
from ssl_toolkit.training.saving import Checkpoints, Stopped
from ssl_toolkit.training.strategy import placement
from ssl_toolkit.views import ViewLoader, view_loader


def _lightning_trainer(parts: Parts, run: Path, console: Console, checkpoints: Checkpoints) -> pl.Trainer:
    trainer = parts.trainer
    result = pl.Trainer(
        **placement(parts),
        precision="bf16-mixed" if parts.dtype == torch.bfloat16 else "32-true",
        max_steps=parts.total_steps,
        max_epochs=-1,  # steps alone decide: Lightning counts an epoch twice when resumed at its end
        gradient_clip_val=trainer.clip_norm,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[*run_callbacks(parts, run, console), checkpoints],
        default_root_dir=run,
    )
    result.strategy.checkpoint_io = CheckpointFiles()
    return result


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's notes on devices, loggers and workers, which say nothing that `describe` does not."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def train(
    parts: Parts, run: Path, console: Console, checkpoint: Path | None, about: Mapping[str, Any] | None = None
) -> Pretraining:
    """Train, from a checkpoint if there is one.

    Args:
        about: `ssl_toolkit.training.fingerprint.fingerprint` of the run, for its checkpoints.

    Raises:
        KeyboardInterrupt: a signal stopped the run (`Terminated` for SIGTERM); says at which step, and how to go on.
    """
    checkpoints = Checkpoints(
        run,
        every=parts.trainer.checkpoint_every,
        keep_every=parts.trainer.keep_every,
        steps_per_epoch=parts.steps_per_epoch,
        about=about or {},
        first=parts.world.first,
        console=console,
    )
    with _quiet_lightning():
        return _fit(parts, run, console, checkpoint, checkpoints)


def _prepared(parts: Parts) -> Method:
    """The method as it trains: its memory format, norms over all devices, compiled."""
    method = parts.method
    if parts.trainer.channels_last:
        method.to(memory_format=torch.channels_last)
    if parts.world.size > 1 and parts.trainer.sync_batchnorm and parts.device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm  # knows timm's norms that hold an activation too

        method = convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
    if parts.trainer.compile:
        method.backbone.compile()
    return method


def _fit(parts: Parts, run: Path, console: Console, checkpoint: Path | None, checkpoints: Checkpoints) -> Pretraining:
    trainer = _lightning_trainer(parts, run, console, checkpoints)
    stats = parts.dataset.config
    optimizer: Any = OmegaConf.to_container(parts.config.optimizer, resolve=True)
    module = Pretraining(
        _prepared(parts),
        mean=stats.mean,
        std=stats.std,
        optimizer=optimizer,
        batch_size=parts.trainer.batch_size,
        steps_per_epoch=parts.steps_per_epoch,
        total_steps=parts.total_steps,
        accumulate=parts.trainer.accumulate,
        seed=parts.config.seed,
        rank=parts.world.rank,
        position=lambda: trainer.global_step,
    )
    loader = _loader(parts, run, console, lambda: trainer.global_step)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except Stopped as stopped:
        kind = Terminated if stopped.number == signal.SIGTERM else KeyboardInterrupt
        raise kind(checkpoints.how_to_continue(trainer.global_step)) from None
    except SystemExit as stopped:  # Lightning's answer to the second Ctrl+C
        signal.signal(signal.SIGINT, interrupt)
        raise KeyboardInterrupt(checkpoints.how_to_continue(trainer.global_step)) from stopped
    finally:
        loader.close()
    return module


def _loader(parts: Parts, run: Path, console: Console, position: Callable[[], int]) -> ViewLoader:
    rank = parts.world.rank
    return view_loader(
        parts.engine.name,
        parts.dataset,
        parts.views,
        seed=parts.config.seed,
        batch_size=parts.batch_per_process,
        rank=rank,
        world=parts.world.size,
        workers=parts.trainer.workers,
        device=parts.device,
        position=position,
        max_unreadable=parts.trainer.max_unreadable,
        report=UnreadableFile(run / ("unreadable.txt" if rank == 0 else f"unreadable-{rank}.txt"), console),
    )
