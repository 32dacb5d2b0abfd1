"""Optimizers by name, and their options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from timm.optim.lamb import Lamb
from timm.optim.lars import Lars
from torch.optim import Optimizer

from ssl_toolkit.backbones.groups import Groups
from ssl_toolkit.registry import Registry

OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
"""Factories ``(config, groups) -> Optimizer``; each group has its learning rate and weight decay."""


@dataclass
class OptimizerConfig:
    """Options that all optimizers have.

    Attributes:
        lr: learning rate; of a global batch of 256 where ``scale_by_batch``, else as it is.
        scale_by_batch: multiply ``lr`` by the global batch size / 256.
        weight_decay: on weights; biases and norm parameters have none.
        weight_decay_end: weight decay goes to this by half a cosine; None keeps it as it is.
        layer_decay: each layer of the backbone learns this much slower than the next, for fine-tuning; 1 all alike.
        warmup_epochs: over which the rate rises linearly from 0; may be a fraction.
        final_factor: the rate at the end of the cosine, as a share of the peak.
    """

    lr: float = 1e-3
    scale_by_batch: bool = False
    weight_decay: float = 1e-4
    weight_decay_end: float | None = None
    layer_decay: float = 1.0
    warmup_epochs: float = 1.0
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        for key in ("weight_decay", "weight_decay_end", "warmup_epochs"):
            value = getattr(self, key)
            if value is not None and not value >= 0:
                raise ValueError(f"{key} must not be negative, not {value}")
        if not 0 <= self.final_factor <= 1:
            raise ValueError(f"final_factor must be a share of the peak from 0 to 1, not {self.final_factor}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, not {self.layer_decay}")

    def peak(self, batch_size: int) -> float:
        """The highest learning rate for a global batch of ``batch_size``."""
        return self.lr * batch_size / 256 if self.scale_by_batch else self.lr

    def final_weight_decay(self) -> float:
        """Weight decay at the end of the run."""
        return self.weight_decay if self.weight_decay_end is None else self.weight_decay_end


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW; ``betas`` are the decay rates of its two moments."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self.betas)


@dataclass
class SGDConfig(OptimizerConfig):
    """SGD with momentum; ``nesterov`` looks ahead."""

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momentum(self.momentum)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")


@dataclass
class LARSConfig(OptimizerConfig):
    """LARS: each weight's step is scaled by ``trust_coefficient`` |w| / (|g| + weight_decay |w|). Biases and norms
    are not adapted."""

    momentum: float = 0.9
    trust_coefficient: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momentum(self.momentum)
        if not self.trust_coefficient > 0:
            raise ValueError(f"trust_coefficient must be positive, not {self.trust_coefficient}")


@dataclass
class LAMBConfig(AdamWConfig):
    """LAMB: each weight's Adam step is scaled by |w| / |step|. Biases and norms are not adapted."""


def check_betas(betas: list[float]) -> None:
    """Two decay rates."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers from 0 to below 1, not {list(betas)}")


def check_momentum(momentum: float) -> None:
    """A decay rate."""
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, not {momentum}")


def _fused(groups: Groups) -> bool:
    """Whether all parameters are where torch updates them in one kernel."""
    return all(p.device.type in ("cuda", "cpu") for group in groups for p in group["params"])


def _adapting(groups: Groups) -> Groups:
    """Weights are adapted whatever their decay, biases and norms never; timm alone would go by the decay."""
    return [{**group, "always_adapt": group["decays"]} for group in groups]


@OPTIMIZERS.register("adamw", AdamWConfig)
def adamw(config: AdamWConfig, groups: Groups) -> Optimizer:
    """AdamW (Loshchilov, Hutter 2019)."""
    return torch.optim.AdamW(groups, betas=(config.betas[0], config.betas[1]), fused=_fused(groups))


@OPTIMIZERS.register("sgd", SGDConfig)
def sgd(config: SGDConfig, groups: Groups) -> Optimizer:
    """SGD with momentum; weight decay adds to the gradient."""
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, fused=_fused(groups))


@OPTIMIZERS.register("lars", LARSConfig)
def lars(config: LARSConfig, groups: Groups) -> Optimizer:
    """LARS (You et al. 2017, Algorithm 1) from timm.

    The scaled gradient, decay included, enters the momentum and the learning rate multiplies the momentum, as in
    VICReg's published code. That code divides by |g + weight_decay w| where the paper of LARS has
    |g| + weight_decay |w|: the two differ by at most weight_decay |w| / |g|. lightly's LARS is timm's, but leaves
    weights alone whose decay is 0.
    """
    return Lars(_adapting(groups), momentum=config.momentum, trust_coeff=config.trust_coefficient)


class SteadyLamb(Lamb):
    """timm's LAMB, whose count of steps stands still where there are no gradients: a failed step changes nothing."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; the closure makes the gradients."""
        counts = [group["step"].clone() if "step" in group else None for group in self.param_groups]
        loss: float | None = super().step(closure)  # type: ignore[no-untyped-call]
        for group, count in zip(self.param_groups, counts):
            if all(p.grad is None for p in group["params"]):
                group.pop("step") if count is None else group.update(step=count)
        return loss


@OPTIMIZERS.register("lamb", LAMBConfig)
def lamb(config: LAMBConfig, groups: Groups) -> Optimizer:
    """LAMB (You et al. 2020) from timm, without the clipping it does by itself: ``trainer.clip_norm`` clips."""
    betas = (config.betas[0], config.betas[1])
    return SteadyLamb(_adapting(groups), betas=betas, max_grad_norm=None)
