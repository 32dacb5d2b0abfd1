"""Training on images that are read and augmented anew each pass: heads, or whole networks.

What protocols on cached features do not need and the others share: batches that depend on (seed, step) alone, exact
gradients over many processes, progress, and unfinished work that is kept and taken up again.
"""

from __future__ import annotations

import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from ssl_toolkit.criteria.distributed import rank, sum_over_ranks, world_size
from ssl_toolkit.errors import Terminated, UserError
from ssl_toolkit.evaluation.unfinished import Unfinished, held_signals
from ssl_toolkit.processes.world import agree, from_first
from ssl_toolkit.progress import progress_bar
from ssl_toolkit.views.loader import epoch_of, stop_workers, worker_loader

SAVE_SECONDS = 60.0
"""Between states of unfinished work."""

CHECK_STEPS = 50
"""Between looks at whether the loss is finite: each waits for the device."""

GO_ON, SAVE, STOP, TERMINATE, FAIL = range(5)
"""What happens before a step; of what the processes want, the highest."""

Key = tuple[int, int]
"""(pass over the data, image): with the seed, all that an augmentation depends on."""

Batch = TypeVar("Batch")


class Diverged(UserError):
    """The loss is not finite."""


class Samples(ABC, Generic[Batch]):
    """What is trained on; handed to worker processes."""

    @abstractmethod
    def __len__(self) -> int:
        """Images in a pass."""

    @abstractmethod
    def batch(self, keys: Sequence[Key]) -> Batch:
        """The augmented images of ``keys``, in this order, with what belongs to them.

        The randomness of each depends on its key and a seed alone, not on its neighbours in the batch. What cannot be
        read is a `UserError` that names it.
        """


@dataclass(frozen=True)
class Plan:
    """How long and on what is trained.

    Attributes:
        steps: in all.
        batch_size: images a step, of all processes together; at most a pass.
        seed: of the order of images, and of what is random in the network.
        workers: processes that read images; 0 reads them in this one.
    """

    steps: int
    batch_size: int
    seed: int = 0
    workers: int = 0

    @classmethod
    def of_passes(cls, passes: float, batch_size: int, length: int, seed: int, workers: int) -> Plan:
        """As many steps as there are whole batches in ``passes`` over ``length`` images."""
        return cls(round(passes * cls(1, batch_size).steps_per_pass(length)), batch_size, seed, workers)

    def steps_per_pass(self, length: int) -> int:
        """Whole batches in a pass; its rest is dropped, each pass has another order."""
        return length // self.images(length)

    def images(self, length: int) -> int:
        """Images a step, of all processes together."""
        return min(self.batch_size, length)

    def keys(self, step: int, length: int, rank: int = 0, world: int = 1) -> list[Key]:
        """This process's part of the batch of a step, a stretch of the batch that one process would have."""
        size = self.images(length)
        number, position = divmod(step, self.steps_per_pass(length))
        order = _order(self.seed, number, length)
        mine = np.array_split(order[position * size : (position + 1) * size], world)[rank]
        return [(number, int(index)) for index in mine]


@lru_cache(maxsize=2)
def _order(seed: int, number: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, number)).permutation(length)


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    samples: Samples[Batch],
    loss: Callable[[Batch], Tensor],
    plan: Plan,
    *,
    device: torch.device,
    title: str,
    unfinished: Unfinished,
    finite: bool = True,
    console: Console | None = None,
) -> None:
    """Train ``network`` by ``optimizer`` on ``samples``, from where unfinished work stopped.

    Gradients are added up over the processes of the default group, so that the result is that of one process with the
    whole batch (but for what BatchNorm sees where it is trained).

    Args:
        network: everything that is trained, on ``device``; its state and the optimizer's are what is kept.
        factor: of the learning rate each group of ``optimizer`` came with, at a step.
        loss: of this process's part of a batch, which it moves to ``device`` itself. Summed over the processes it is
            the loss of the whole batch: divide by counts of the whole batch (`joined`).
        finite: stop with an error where the loss is not finite; false where heads side by side may diverge one by one.

    Raises:
        UserError: an image that cannot be read, or a loss that is not finite.
        KeyboardInterrupt: stopped by a signal, between two steps, the state kept.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    start = _restore(network, optimizer, unfinished)
    if start >= plan.steps:
        return
    images = plan.images(len(samples))
    saved = time.monotonic()
    with (
        held_signals() as caught,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        closing(_batches(samples, plan, start, device)) as batches,
        progress_bar(title, plan.steps * images, done=start * images, console=console) as bar,
    ):
        for step in range(start, plan.steps):
            batch = next(batches)
            event = _agreed(_event(batch, caught, saved), device)
            if event != GO_ON:
                _handle(event, step, batch, f"{title} at step {step} of {plan.steps}", network, optimizer, unfinished)
                saved = time.monotonic()
            torch.manual_seed((plan.seed * 1_000_003 + step) * 4_096 + rank())
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor(step)
            value = _update(network, optimizer, loss, batch)
            if finite and (step % CHECK_STEPS == 0 or step == plan.steps - 1):
                _require_finite(value, title, step)
            bar.advance(images)
        _keep(plan.steps, network, optimizer, unfinished)
        event = _agreed(_event(None, caught, saved), device)
        if event in (STOP, TERMINATE):
            raise _stopped(event, f"{title} at its end", unfinished)


def _update(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[Batch], Tensor], batch: Batch
) -> Tensor:
    """One step down the gradient of the batch of all processes; this process's part of its loss."""
    optimizer.zero_grad(set_to_none=True)
    value = loss(batch)
    torch.autograd.backward(value)
    sum_gradients(network)
    optimizer.step()
    return value.detach()


def cosine(steps: int, warmup: int = 0) -> Callable[[int], float]:
    """A ``factor`` of `train`: up along a line over ``warmup`` steps, then down to 0 along half a cosine."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor


def _event(batch: Any, caught: Sequence[int], saved: float) -> int:
    """What this process wants before it trains on ``batch``."""
    if isinstance(batch, UserError):
        return FAIL
    if caught:
        return TERMINATE if signal.SIGTERM in caught else STOP
    return SAVE if time.monotonic() - saved > SAVE_SECONDS else GO_ON


def _agreed(event: int, device: torch.device) -> int:
    """The highest of the events of all processes, in each of them: none may leave while others wait for it."""
    if world_size() == 1:
        return event
    highest = torch.tensor(event, device=device)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest.item())


def _handle(
    event: int,
    step: int,
    batch: Any,
    where: str,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    unfinished: Unfinished,
) -> None:
    """Keep what ``step`` steps have made, and stop where the event says so."""
    if event == FAIL:
        agree(lambda: _raise(batch))
    _keep(step, network, optimizer, unfinished)
    if event in (STOP, TERMINATE):
        raise _stopped(event, where, unfinished)


def _raise(batch: Any) -> None:
    if isinstance(batch, UserError):
        raise batch


def _stopped(event: int, where: str, unfinished: Unfinished) -> KeyboardInterrupt:
    kept = "" if unfinished.path is None else "; the same command continues it"
    return (Terminated if event == TERMINATE else KeyboardInterrupt)(f"stopped {where}{kept}")


def _restore(network: nn.Module, optimizer: torch.optim.Optimizer, unfinished: Unfinished) -> int:
    """Take up the state that process 0 kept, if there is one; the number of steps done."""
    state = from_first(unfinished.load)
    if state is None:
        return 0
    if not _fits(state, network):
        if rank() == 0:
            unfinished.tell("is damaged")
        return 0
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _fits(state: Mapping[str, Any], network: nn.Module) -> bool:
    """Whether ``state`` is one of ``network``: loading one that is not would leave half of it changed."""
    if not {"step", "network", "optimizer"} <= state.keys():
        return False
    shapes = [{name: value.shape for name, value in d.items()} for d in (state["network"], network.state_dict())]
    return shapes[0] == shapes[1]


def _keep(step: int, network: nn.Module, optimizer: torch.optim.Optimizer, unfinished: Unfinished) -> None:
    """Every process calls this at the same step."""
    average_statistics(network)
    if rank() == 0:
        unfinished.save({"step": step, "network": network.state_dict(), "optimizer": optimizer.state_dict()})


def average_statistics(network: nn.Module) -> None:
    """Give the running statistics of each BatchNorm that is trained the mean over the processes, in place.

    They are sums of what the batches had, so that it does not matter how often this is done.
    """
    if world_size() == 1:
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
            for statistic in (module.running_mean, module.running_var):
                assert statistic is not None
                dist.all_reduce(statistic)
                statistic /= world_size()


def _require_finite(value: Tensor, title: str, step: int) -> None:
    joined_value = joined(value)
    if not bool(joined_value.isfinite()):
        raise Diverged(f"{title}: the loss is {float(joined_value)} at step {step}: lower the learning rate")


def joined(count: Tensor) -> Tensor:
    """``count`` added up over the processes, without a graph."""
    return sum_over_ranks(count.detach().clone())


def sum_gradients(network: nn.Module) -> None:
    """Add up the gradients of all processes, in place."""
    if world_size() == 1:
        return
    gradients = []
    for parameter in network.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # not used here, perhaps elsewhere
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


class _Batches(Dataset[Any]):
    """Batches by their keys; an error is returned, so that it leaves a worker process as it is."""

    def __init__(self, samples: Samples[Any]) -> None:
        self.samples = samples

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        try:
            return self.samples.batch(keys)
        except UserError as error:
            return error


class _Steps:
    """The keys of this process's part of each step, from one on."""

    def __init__(self, plan: Plan, length: int, start: int) -> None:
        self.plan, self.length, self.start = plan, length, start
        self.rank, self.world = rank(), world_size()

    def __len__(self) -> int:
        return self.plan.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.plan.steps):
            yield self.plan.keys(step, self.length, self.rank, self.world)


def _batches(samples: Samples[Batch], plan: Plan, start: int, device: torch.device) -> Generator[Any, None, None]:
    """A `Batch` or a `UserError` for each step."""
    images = plan.images(len(samples))
    if images < world_size():
        raise UserError(f"a batch of {images} is too small for {world_size()} processes")
    steps = _Steps(plan, len(samples), start)
    loader = worker_loader(_Batches(samples), steps, plan.workers, pin_memory=device.type == "cuda")
    try:
        yield from epoch_of(loader)
    finally:
        stop_workers(loader)
