"""Training itself: Lightning, set up for one run."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from rich.console import Console

from ssl_toolkit.criteria import NonFiniteError
from ssl_toolkit.errors import UserError
from ssl_toolkit.methods import Method
from ssl_toolkit.training.callbacks import MetricsFile, TrainingBar, UnreadableFile
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.training.parts import Parts
from ssl_toolkit.views import ViewLoader, view_loader


def _lightning_trainer(parts: Parts, run: Path, console: Console) -> pl.Trainer:
    trainer, world = parts.trainer, parts.world
    checkpoint = ModelCheckpoint(
        run / "checkpoints",
        filename="last",
        save_top_k=1,
        every_n_epochs=1,
        save_on_exception=True,
        enable_version_counter=False,
    )
    return pl.Trainer(
        accelerator={"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[parts.device.type],
        devices=world.local_size if parts.device.index is None or world.size > 1 else [parts.device.index],
        num_nodes=world.nodes,
        strategy="ddp" if world.size > 1 else "auto",
        precision="bf16-mixed" if parts.dtype == torch.bfloat16 else "32-true",
        max_steps=parts.total_steps,
        max_epochs=-1,  # steps alone decide: Lightning counts an epoch twice when resumed at its end
        gradient_clip_val=trainer.clip_norm,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[*run_callbacks(parts, run, console), checkpoint],
        default_root_dir=run,
    )


def run_callbacks(parts: Parts, run: Path, console: Console) -> list[pl.Callback]:
    """What watches a run and writes of it."""
    size, epoch = parts.trainer.batch_size, parts.steps_per_epoch
    return [
        MetricsFile(run / "metrics.csv", parts.trainer.log_every, size, epoch),
        TrainingBar(size, epoch, str(parts.config.method.name), console),
    ]


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


def train(parts: Parts, run: Path, console: Console, checkpoint: Path | None) -> Pretraining:
    with _quiet_lightning():
        return _fit(parts, run, console, checkpoint)


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


def _fit(parts: Parts, run: Path, console: Console, checkpoint: Path | None) -> Pretraining:
    trainer = _lightning_trainer(parts, run, console)
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
    except SystemExit as stopped:  # Lightning's answer to Ctrl+C, after the checkpoint is written
        signal.signal(signal.SIGINT, interrupt)
        how = f"stopped at step {trainer.global_step}; continue with: ssl-toolkit pretrain run={run}"
        raise KeyboardInterrupt(how) from stopped
    except NonFiniteError as error:
        raise UserError(
            f"the loss is not finite at step {trainer.global_step}: {error}; lower optimizer.lr or raise its "
            f"warmup_epochs; checkpoints so far are in {run / 'checkpoints'}"
        ) from error
    finally:
        loader.close()
    return module


def _loader(parts: Parts, run: Path, console: Console, position: Callable[[], int]) -> ViewLoader:
    return view_loader(
        parts.engine.name,
        parts.dataset,
        parts.views,
        seed=parts.config.seed,
        batch_size=parts.batch_per_process,
        rank=parts.world.rank,
        world=parts.world.size,
        workers=parts.trainer.workers,
        device=parts.device,
        position=position,
        max_unreadable=parts.trainer.max_unreadable,
        report=UnreadableFile(run / "unreadable.txt", console),
    )
