"""Pretraining from a config: check everything, then train, then leave a run folder behind."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit.backbones import Backbone, create_backbone, load_backbone, map_size, save_backbone
from ssl_toolkit.criteria import NonFiniteError
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.hardware import describe_hardware, pick_device, pick_precision
from ssl_toolkit.methods import METHODS, Method
from ssl_toolkit.registry import typed
from ssl_toolkit.training.callbacks import MetricsFile, TrainingBar, UnreadableFile
from ssl_toolkit.training.examples import save_match_examples, save_view_examples
from ssl_toolkit.training.module import Pretraining
from ssl_toolkit.training.optimizers import OPTIMIZERS
from ssl_toolkit.training.run import default_name, new_run_folder, write_run_files
from ssl_toolkit.views import Engine, ViewLoader, ViewsConfig, choose_engine, view_loader


@dataclass
class TrainerConfig:
    """How long and on what to train.

    Attributes:
        epochs: passes over the data.
        steps: optimization steps; overrides ``epochs`` where it is set.
        batch_size: images a step.
        workers: processes that make views; 0 makes them between steps.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``bf16`` or ``fp32``; auto takes bf16 where the hardware is fast with it.
        channels_last: memory format of images and weights.
        log_every: steps between rows of ``metrics.csv``.
        max_unreadable: share of the images that may be unreadable; they are skipped and named. With more the run stops.
    """

    epochs: int = 100
    steps: int | None = None
    batch_size: int = 256
    workers: int = 2
    device: str = "auto"
    precision: str = "auto"
    channels_last: bool = True
    log_every: int = 10
    max_unreadable: float = 0.01

    def __post_init__(self) -> None:
        for key in ("epochs", "log_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, not {self.workers}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be a share from 0 to 1, not {self.max_unreadable}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, not {self.batch_size}: statistics are over the batch")


@dataclass
class Parts:
    """Everything a run is made of, checked."""

    config: DictConfig
    trainer: TrainerConfig
    views: ViewsConfig
    dataset: ImageDataset
    method: Method
    device: torch.device
    dtype: torch.dtype
    map_sizes: list[tuple[int, int]]
    engine: Engine

    @property
    def steps_per_epoch(self) -> int:
        """Optimization steps in a pass over the data; the rest of a pass is dropped."""
        return len(self.dataset) // self.trainer.batch_size

    @property
    def total_steps(self) -> int:
        """Optimization steps of the whole run."""
        return self.trainer.steps or self.trainer.epochs * self.steps_per_epoch


def _initialise(backbone: Backbone, path: Path) -> None:
    """Load weights from a run folder or an exported backbone of the same architecture."""
    source = path / "backbone.safetensors" if path.is_dir() else path
    loaded, _ = load_backbone(source, expect=backbone.config)
    backbone.load_state_dict(loaded.state_dict())


def assemble(config: DictConfig) -> Parts:
    """Build and check all parts of a run before any work is done.

    Raises:
        UserError: naming the key, file or shape that is wrong.
    """
    trainer = typed(TrainerConfig, config.trainer, "trainer")
    views = typed(ViewsConfig, config.views, "views")
    if config.seed < 0:
        raise UserError(f"seed must not be negative, not {config.seed}")
    METHODS.options(config.method)
    OPTIMIZERS.options(config.optimizer)
    device = pick_device(trainer.device)
    dtype = pick_precision(trainer.precision, device)
    dataset = build_dataset(config.data, "train")
    if len(dataset) < trainer.batch_size:
        raise UserError(
            f"trainer.batch_size: {trainer.batch_size} images a step asked of a data set of {len(dataset)}; lower it"
        )
    if len(dataset.config.mean) != dataset.in_channels:
        raise UserError(f"data.mean has {len(dataset.config.mean)} values for images of {dataset.in_channels} channels")
    config.backbone.in_channels = dataset.in_channels
    torch.manual_seed(config.seed)
    backbone = create_backbone(config.backbone)
    if config.init is not None:
        _initialise(backbone, Path(config.init))
    method = METHODS.build(config.method, backbone=backbone)
    shapes = {size: map_size(backbone, size) for size in set(views.sizes())}
    sizes = [shapes[size] for size in views.sizes()]
    method.check(sizes, views.num_large)
    engine = choose_engine(views.engine, device, dataset)
    return Parts(config, trainer, views, dataset, method, device, dtype, sizes, engine)


def describe(parts: Parts, console: Console) -> None:
    """Print what will run."""
    config, trainer = parts.config, parts.trainer
    optimizer = OPTIMIZERS.options(config.optimizer)
    parameters = sum(p.numel() for p in parts.method.backbone.parameters())
    maps = ", ".join(dict.fromkeys(f"{h}x{w}" for h, w in parts.map_sizes))
    details = [f"{key} {value}" for key, value in config.method.items() if key in ("preset", "alpha", "temperature")]
    local = config.method.get("local")
    if local is not None:
        details.append(f"matching {local.matching}")
    rows = [
        ("method", f"{config.method.name} ({', '.join(details)})"),
        (
            "backbone",
            f"{config.backbone.name}, {parameters / 1e6:.2f} M parameters, "
            f"{parts.method.backbone.num_features} features, maps {maps}",
        ),
        ("data", f"{config.data.name}, {len(parts.dataset):,} training images"),
        *(("views", group.describe(parts.dataset.in_channels)) for group in parts.views.groups),
        ("engine", f"{parts.engine.name} ({parts.engine.reason})"),
        (
            "training",
            f"{parts.total_steps:,} steps of {trainer.batch_size} images ({parts.steps_per_epoch:,} an epoch), "
            f"{config.optimizer.name}, learning rate {optimizer.peak(trainer.batch_size):g} after "
            f"{round(optimizer.warmup_epochs * parts.steps_per_epoch):,} warm-up steps, cosine to "
            f"{optimizer.peak(trainer.batch_size) * optimizer.final_factor:g}",
        ),
        ("hardware", f"{describe_hardware(parts.device, parts.dtype)}, {trainer.workers} view workers"),
    ]
    for name, text in rows:
        console.print(f"  [bold]{name:<9}[/bold] {text}", highlight=False, soft_wrap=True)
    for sentence in parts.method.advice(parts.map_sizes, parts.views.num_large):
        console.print(f"  [bold yellow]note[/bold yellow]      {sentence}", highlight=False, soft_wrap=True)


def resolved(config: DictConfig) -> DictConfig:
    """``config`` with the preset's values written out, as it is stored."""
    options: Any = METHODS.options(config.method)
    method = {"name": config.method.name, **OmegaConf.to_container(OmegaConf.structured(options))}  # type: ignore[dict-item]
    result = config.copy()
    OmegaConf.set_struct(result, False)
    result.method = method
    return result


def _lightning_trainer(parts: Parts, run: Path, console: Console) -> pl.Trainer:
    trainer, batch_size = parts.trainer, parts.trainer.batch_size
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
        devices=1 if parts.device.index is None else [parts.device.index],
        precision="bf16-mixed" if parts.dtype == torch.bfloat16 else "32-true",
        max_steps=parts.total_steps,
        max_epochs=-1,  # steps alone decide: Lightning counts an epoch twice when resumed at its end
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[
            MetricsFile(run / "metrics.csv", trainer.log_every, batch_size, parts.steps_per_epoch),
            TrainingBar(batch_size, parts.steps_per_epoch, str(parts.config.method.name), console),
            checkpoint,
        ],
        default_root_dir=run,
    )


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


def _train(parts: Parts, run: Path, console: Console, checkpoint: Path | None) -> Pretraining:
    with _quiet_lightning():
        return _fit(parts, run, console, checkpoint)


def _fit(parts: Parts, run: Path, console: Console, checkpoint: Path | None) -> Pretraining:
    trainer = _lightning_trainer(parts, run, console)
    if parts.trainer.channels_last:
        parts.method.to(memory_format=torch.channels_last)
    stats = parts.dataset.config
    module = Pretraining(
        parts.method,
        mean=stats.mean,
        std=stats.std,
        optimizer=_plain(parts.config.optimizer),
        batch_size=parts.trainer.batch_size,
        steps_per_epoch=parts.steps_per_epoch,
        total_steps=parts.total_steps,
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
        batch_size=parts.trainer.batch_size,
        workers=parts.trainer.workers,
        device=parts.device,
        position=position,
        max_unreadable=parts.trainer.max_unreadable,
        report=UnreadableFile(run / "unreadable.txt", console),
    )


def _plain(config: DictConfig) -> Mapping[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


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
    module = _train(parts, run, console, None)
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
    module = _train(parts, run, console, checkpoint)
    _finish(parts, module, run)
    return run
