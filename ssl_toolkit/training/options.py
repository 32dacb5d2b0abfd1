"""How long and on what to train."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrainerConfig:
    """How long and on what to train.

    Attributes:
        epochs: passes over the data.
        steps: optimization steps; overrides ``epochs`` where it is set.
        batch_size: images a step, on all devices together.
        accumulate: parts in which each process passes its images through the network; the loss is that of the whole
            batch, see `ssl_toolkit.training.accumulation`.
        workers: processes that make views, for each device; 0 makes them between steps.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: processes on this machine, one for each device; 0 takes all GPUs there are (one process on a CPU).
        precision: ``auto``, ``bf16`` or ``fp32``; auto takes bf16 where the hardware is fast with it.
        channels_last: memory format of images and weights.
        compile: compile the backbone with ``torch.compile``.
        sync_batchnorm: norm statistics over all devices where there are several (on GPUs).
        clip_norm: gradients are scaled down to this norm where they exceed it; None never.
        checkpoint_every: steps between checkpoints; None writes one at the end of every epoch.
        keep_every: epochs between checkpoints that are kept for good; None keeps the last and the best alone.
        log_every: steps between rows of ``metrics.csv``.
        max_unreadable: share of the images that may be unreadable; they are skipped and named. With more the run stops.
    """

    epochs: int = 100
    steps: int | None = None
    batch_size: int = 256
    accumulate: int = 1
    workers: int = 2
    device: str = "auto"
    devices: int = 1
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = True
    clip_norm: float | None = None
    checkpoint_every: int | None = None
    keep_every: int | None = None
    log_every: int = 10
    max_unreadable: float = 0.01

    def __post_init__(self) -> None:
        for key in ("epochs", "log_every", "accumulate"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        for key in ("steps", "checkpoint_every", "keep_every"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be at least 1, not {value}")
        for key in ("workers", "devices"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, not {getattr(self, key)}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, not {self.clip_norm}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be a share from 0 to 1, not {self.max_unreadable}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, not {self.batch_size}: statistics are over the batch")
