"""What a run is made of, put together and checked before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit.backbones import Backbone, create_backbone, load_backbone, map_size
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.hardware import describe_hardware, pick_device, pick_precision
from ssl_toolkit.methods import METHODS, Method
from ssl_toolkit.registry import typed
from ssl_toolkit.training.optimizers import OPTIMIZERS
from ssl_toolkit.training.options import TrainerConfig
from ssl_toolkit.training.world import World, current_world
from ssl_toolkit.views import Engine, ViewsConfig, choose_engine


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
    world: World

    @property
    def steps_per_epoch(self) -> int:
        """Optimization steps in a pass over the data; the rest of a pass is dropped."""
        return len(self.dataset) // self.trainer.batch_size

    @property
    def batch_per_process(self) -> int:
        """Images a step of each process."""
        return self.trainer.batch_size // self.world.size

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
    world = current_world()
    check_batch(trainer, world)
    device = process_device(pick_device(trainer.device), world)
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
    return Parts(config, trainer, views, dataset, method, device, dtype, sizes, engine, world)


def check_batch(trainer: TrainerConfig, world: World) -> None:
    """Refuse a batch that cannot be shared out evenly.

    Raises:
        UserError: naming the numbers, and the nearest batch size that can.
    """
    shares = world.size * trainer.accumulate
    if trainer.batch_size % shares:
        parts = " times ".join(
            f"{count} {what}"
            for count, what in ((world.size, "processes"), (trainer.accumulate, "parts (trainer.accumulate)"))
            if count > 1
        )
        near = max(1, round(trainer.batch_size / shares)) * shares
        raise UserError(f"trainer.batch_size: {trainer.batch_size} images do not divide by {parts}; take {near}")
    if trainer.batch_size // shares < 2:
        raise UserError(
            f"trainer.batch_size: {trainer.batch_size} images leave 1 to a pass through the network, too few for norm "
            f"statistics; take at least {2 * shares}"
        )


def process_device(device: torch.device, world: World) -> torch.device:
    """The device of this process among those of its machine.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if device.type != "cuda" or world.local_size == 1:
        return device
    if device.index is not None:
        raise UserError(f"trainer.device={device} names one GPU for {world.local_size} processes: take device=cuda")
    if world.local_size > torch.cuda.device_count():
        raise UserError(f"{world.local_size} processes on a machine with {torch.cuda.device_count()} GPUs: start fewer")
    return torch.device("cuda", world.local_rank)


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
