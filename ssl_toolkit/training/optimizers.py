"""Optimizers by name, with biases and norms kept out of weight decay, and the learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ssl_toolkit.registry import Registry

OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")


@dataclass
class OptimizerConfig:
    """Options that all optimizers have.

    Attributes:
        lr: learning rate; of a global batch of 256 where ``scale_by_batch``, else as it is.
        scale_by_batch: multiply ``lr`` by the global batch size / 256.
        weight_decay: on weights; biases and norm parameters have none.
        warmup_epochs: over which the rate rises linearly from 0; may be a fraction.
        final_factor: the rate at the end of the cosine, as a share of the peak.
    """

    lr: float = 1e-3
    scale_by_batch: bool = False
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if min(self.weight_decay, self.warmup_epochs, self.final_factor) < 0 or self.final_factor > 1:
            raise ValueError("weight_decay and warmup_epochs must not be negative, final_factor between 0 and 1")

    def peak(self, batch_size: int) -> float:
        """The highest learning rate for a global batch of ``batch_size``."""
        return self.lr * batch_size / 256 if self.scale_by_batch else self.lr


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW; ``betas`` are the decay rates of its two moments."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])


@dataclass
class SGDConfig(OptimizerConfig):
    """SGD with momentum."""

    momentum: float = 0.9


@dataclass
class LARSConfig(OptimizerConfig):
    """LARS: each weight's step is scaled by ``trust_coefficient`` |w| / (|g| + weight_decay |w|). Biases and norms
    are not adapted."""

    momentum: float = 0.9
    trust_coefficient: float = 0.001


Groups = list[dict[str, Any]]


def parameter_groups(module: nn.Module, weight_decay: float) -> Groups:
    """Weights with decay; biases, norms and other vectors without."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


@OPTIMIZERS.register("adamw", AdamWConfig)
def adamw(config: AdamWConfig, groups: Groups, lr: float) -> Optimizer:
    """AdamW (Loshchilov, Hutter 2019), fused where the device has it."""
    fused = all(p.device.type in ("cuda", "cpu") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=lr, betas=(config.betas[0], config.betas[1]), fused=fused)


@OPTIMIZERS.register("sgd", SGDConfig)
def sgd(config: SGDConfig, groups: Groups, lr: float) -> Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum)


@OPTIMIZERS.register("lars", LARSConfig)
def lars(config: LARSConfig, groups: Groups, lr: float) -> Optimizer:
    """LARS (You et al. 2017) from timm; weights are adapted whatever their decay, vectors never."""
    from timm.optim.lars import Lars

    for group in groups:
        group["always_adapt"] = all(p.ndim > 1 for p in group["params"])
    return Lars(groups, lr=lr, momentum=config.momentum, trust_coeff=config.trust_coefficient)


def cosine_schedule(step: int, warmup_steps: int, total_steps: int, final_factor: float) -> float:
    """Factor on the peak rate at ``step``: linear from 0 over the warm-up, then a half cosine to ``final_factor``."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
