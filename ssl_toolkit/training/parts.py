"""What a run is made of, put together and checked before any work is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ssl_toolkit.backbones import Backbone, create_backbone, map_size
from ssl_toolkit.data import build_dataset
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.hardware import check_device_name, pick_device, pick_precision
from ssl_toolkit.methods import METHODS, Method
from ssl_toolkit.processes.world import World, join, planned_world, process_device, told_world
from ssl_toolkit.registry import typed
from ssl_toolkit.training.callbacks import MonitorConfig, check_loggers
from ssl_toolkit.training.optimizers import OPTIMIZERS
from ssl_toolkit.training.options import TrainerConfig
from ssl_toolkit.training.run import initial_weights
from ssl_toolkit.views import Engine, ViewsConfig, choose_engine
from ssl_toolkit.zoo import zoo_file
from ssl_toolkit.zoo.importers import load_checkpoint


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
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    @property
    def steps_per_epoch(self) -> int:
        """Optimization steps in a pass over the data; the rest of a pass is dropped."""
        return len(self.dataset) // self.trainer.batch_size

    @property
    def batch_per_process(self) -> int:
        """Images a step of each process."""
        return self.trainer.batch_size // self.world.size

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return round(OPTIMIZERS.options(self.config.optimizer).warmup_epochs * self.steps_per_epoch)

    @property
    def total_steps(self) -> int:
        """Optimization steps of the whole run."""
        return self.trainer.steps or self.trainer.epochs * self.steps_per_epoch


IN_ZOO = "zoo:"
"""What ``init=`` begins with where it names a published checkpoint."""


def _initialise(backbone: Backbone, init: str) -> None:
    """Load weights of the same architecture from a run folder, a checkpoint of any known format, or the zoo."""
    # Every process asks for the file: one of each machine downloads it, and the others wait at its lock.
    path = zoo_file(init.removeprefix(IN_ZOO)) if init.startswith(IN_ZOO) else initial_weights(Path(init))
    backbone.load_state_dict(load_checkpoint(path, arch=backbone.config).backbone.state_dict())


def assemble(config: DictConfig, world: World | None = None) -> Parts:
    """Build and check all parts of a run before any work is done.

    Args:
        world: of a run that is going to train elsewhere, whose devices cannot be looked at; its parts are on the CPU.

    Raises:
        UserError: naming the key, file or shape that is wrong.
    """
    trainer = typed(TrainerConfig, config.trainer, "trainer")
    views = typed(ViewsConfig, config.views, "views")
    monitor = typed(MonitorConfig, config.get("monitor") or {}, "monitor")
    check_loggers(monitor.loggers)
    if config.seed < 0:
        raise UserError(f"seed must not be negative, not {config.seed}")
    METHODS.options(config.method)
    OPTIMIZERS.options(config.optimizer)
    world, device = place(trainer, world)
    dtype = pick_precision(trainer.precision, device)
    dataset = build_dataset(config.data, "train")
    monitor.check(config.data.name, dataset.classes is not None)
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
        _initialise(backbone, str(config.init))
    method = METHODS.build(config.method, backbone=backbone)
    shapes = {size: map_size(backbone, size) for size in set(views.sizes())}
    sizes = [shapes[size] for size in views.sizes()]
    method.check(sizes, views.num_large)
    engine = choose_engine(views.engine, device, dataset)
    return Parts(config, trainer, views, dataset, method, device, dtype, sizes, engine, world, monitor)


def place(trainer: TrainerConfig, world: World | None = None) -> tuple[World, torch.device]:
    """The processes of a run, this one or the first to be started among them, and its device.

    Args:
        world: see `assemble`.

    Raises:
        UserError: they cannot share the batch or the devices of the machine.
    """
    if world is not None:
        check_device_name(trainer.device)
        check_batch(trainer, world)
        return world, torch.device("cpu")
    asked = pick_device(trainer.device)
    world = planned_world(trainer.devices, asked)
    check_batch(trainer, world)
    return world, process_device(asked, world)


def meet(config: DictConfig) -> None:
    """Connect this process with the others, where torchrun or srun has started several.

    Raises:
        UserError: it has no device.
    """
    world = told_world()
    if world is not None:
        trainer = typed(TrainerConfig, config.trainer, "trainer")
        join(world, process_device(pick_device(trainer.device), world))


def starts_processes(parts: Parts) -> bool:
    """Whether the run needs processes that are still to be started."""
    return parts.world.size > 1 and told_world() is None


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


def resolved(config: DictConfig) -> DictConfig:
    """``config`` with the preset's values written out, as it is stored."""
    options: Any = METHODS.options(config.method)
    method = {"name": config.method.name, **OmegaConf.to_container(OmegaConf.structured(options))}  # type: ignore[dict-item]
    result = config.copy()
    OmegaConf.set_struct(result, False)
    result.method = method
    result.pop("launcher", None)  # says where the run was started, not what it is
    return result
