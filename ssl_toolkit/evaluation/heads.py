"""Linear heads trained side by side on the same features, one for each learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_toolkit.evaluation.live import joined

MAX_RESIDENT = 0.5
"""Share of a GPU's free memory that features may take; above it, batches are sent one by one."""

SMALL_STEP = 2**28
"""Multiplications in a forward pass of the heads below which one CPU thread does the step."""

STATISTICS = 2**23
"""Numbers turned to float64 at once for mean and deviation: 64 MiB."""


class Heads(nn.Module):
    """L linear classifiers of one input, as one matrix product.

    They start at zero: the problem is convex, so no seed is needed and every head starts equal. Nothing that
    one head does (diverging included) changes another.

    Args:
        count: L.
        in_features: D.
        classes: C.
    """

    def __init__(self, count: int, in_features: int, classes: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(classes, in_features) for _ in range(count))
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in range(count))
        self.classes = classes

    @property
    def size(self) -> int:
        """Numbers in all weights: the multiplications for one input."""
        return sum(weight.numel() for weight in self.weights)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs as columns ``(D, N)`` to logits ``(C, L, N)``.

        Classes come first: the softmax and the maximum over them then run along memory, on a CPU several
        times as fast as over a few classes at a time.
        """
        weight, bias = torch.stack(list(self.weights), 1), torch.stack(list(self.biases), 1)
        logits: Tensor = weight.flatten(0, 1) @ x + bias.flatten()[:, None]
        return logits.view(self.classes, -1, x.shape[1])

    def diverged(self) -> list[bool]:
        """Which heads hold a weight that is not finite."""
        return [
            not bool(weight.isfinite().all() and bias.isfinite().all())
            for weight, bias in zip(self.weights, self.biases)
        ]


def head_optimizer(heads: Heads, name: str, lrs: Sequence[float], weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer that steps every head by its own learning rate.

    Args:
        name: ``sgd`` (momentum 0.9, not Nesterov) or ``adamw``.
        lrs: one for each head, as given: not scaled by the batch size.
        weight_decay: on weights, not on biases.
    """
    groups = []
    for weight, bias, lr in zip(heads.weights, heads.biases, lrs):
        groups.append({"params": [weight], "lr": lr, "weight_decay": weight_decay})
        groups.append({"params": [bias], "lr": lr, "weight_decay": 0.0})
    return torch.optim.SGD(groups, momentum=0.9) if name == "sgd" else torch.optim.AdamW(groups)


class HeadOptimizer:
    """`head_optimizer` with learning rates that are decayed to 0 along half a cosine over ``steps``."""

    def __init__(self, heads: Heads, name: str, lrs: Sequence[float], weight_decay: float, steps: int) -> None:
        self.optimizer = head_optimizer(heads, name, lrs, weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
        )

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of ``loss``, which is the sum of the losses of the heads."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.schedule.step()


class FeatureNorm(nn.Module):
    """BatchNorm of features without affine parameters: by the batch of all processes in training mode, by running
    statistics in evaluation mode. No gradient flows through it: what comes in is frozen.

    Args:
        features: D.
        momentum: share of a batch in the running statistics.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, features: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """``(N, D)`` float32, standardised."""
        mean, var = self._of_batch(x) if self.training else (self.mean, self.var)
        return (x - mean) * (var + self.eps).rsqrt()

    def _of_batch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count = joined(x.new_tensor(float(len(x))))
        mean = joined(x.sum(0)) / count
        squares = joined((x - mean).square().sum(0))
        self.mean.lerp_(mean, self.momentum)
        self.var.lerp_(squares / (count - 1).clamp_min(1), self.momentum)  # unbiased, as torch keeps it
        return mean, squares / count


def summed_loss(logits: Tensor, target: Tensor, ignore: int = -100, scored: Tensor | int | None = None) -> Tensor:
    """Sum over heads of the mean cross entropy over targets: a head's gradient is as if it were alone.

    Args:
        logits: ``(C, L, ...)``.
        target: ``(...)`` int64; ``ignore`` is left out of the mean.
        scored: targets in the mean, of which these are a part; None: those of ``target``.
    """
    classes, heads = logits.shape[:2]
    flat = logits.reshape(1, classes, -1)
    repeated = target.flatten().repeat(heads)[None]
    scored = (target != ignore).sum().clamp_min(1) if scored is None else scored
    return F.cross_entropy(flat, repeated, ignore_index=ignore, reduction="sum") / scored


@contextmanager
def threads_for(work: int, device: torch.device) -> Iterator[None]:
    """One CPU thread for the length of a block if a step is small (``work`` multiplications), else all of them.

    Threads that wait for each other at every small operation gain little on an idle machine, and on a shared
    one they cost more than tenfold (digit scenes on 2 busy cores: 83 s with 2 threads, 6 s with one).
    """
    threads = torch.get_num_threads()
    if device.type == "cpu" and work < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Standardizer:
    """Subtracts the mean and divides by the standard deviation of the training features, by channel: a
    BatchNorm without affine parameters, in evaluation mode."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, features: Tensor, enabled: bool = True) -> Standardizer:
        """From ``(N, D)`` or maps ``(N, D, H, W)``, summed in float64; changes nothing if not ``enabled``."""
        channels = features.shape[1]
        if not enabled:
            return cls(torch.zeros(channels), torch.ones(channels))
        total, squares = torch.zeros(2, channels, dtype=torch.float64)
        for part in torch.split(features, max(1, STATISTICS // features[0].numel())):
            values = part.double().flatten(2) if part.dim() > 2 else part.double()[:, :, None]
            total += values.sum((0, 2))
            squares += values.square().sum((0, 2))
        return cls.of_sums(total, squares, features.numel() // channels)

    @classmethod
    def of_sums(cls, total: Tensor, squares: Tensor, count: int) -> Standardizer:
        """From the sums over ``count`` vectors, each ``(D,)`` float64, of values and of their squares."""
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        # A channel that never changes stays 0 and is not blown up to rounding noise.
        std = std.where(std > 1e-6 * (1e-6 + mean.abs()), torch.inf)
        return cls(mean.float(), std.float())

    def to(self, device: torch.device) -> Standardizer:
        """The same on another device."""
        return Standardizer(self.mean.to(device), self.std.to(device))

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, D)`` or ``(N, D, H, W)`` of any floating dtype, standardised in float32."""
        shape = (-1, *[1] * (x.dim() - 2))
        return (x.float() - self.mean.view(shape)) / self.std.view(shape)


def batches(length: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """``steps`` batches of positions; each pass is a permutation by ``seed``, its last batch may be short."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        for rows in torch.split(torch.randperm(length, generator=generator), batch_size):
            if done == steps:
                return
            yield rows
            done += 1


def images_in(length: int, batch_size: int, steps: int) -> int:
    """Images in all of `batches`."""
    passes, rest = divmod(steps, math.ceil(length / batch_size))
    return passes * length + rest * batch_size


def resident(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device`` if it fits well, else where it is."""
    if device.type == "cuda" and tensor.nbytes > MAX_RESIDENT * torch.cuda.mem_get_info(device)[0]:
        return tensor
    return tensor.to(device)


def edge_note(values: Sequence[float], chosen: float, option: str, name: str = "lr") -> list[str]:
    """A note where the best learning rate is the end of the sweep, so that a better one may lie beyond."""
    if len(values) < 2 or chosen not in (min(values), max(values)):
        return []
    return [f"the chosen {name} {chosen:g} is the end of the sweep: widen {option}"]


def check_lrs(lrs: Sequence[float], name: str = "lrs") -> None:
    """ValueError unless ``lrs`` are one or more different positive numbers."""
    if not lrs or not all(0 < lr < math.inf for lr in lrs) or len(set(lrs)) < len(lrs):
        raise ValueError(f"{name} must be different positive numbers, not {list(lrs)}")
