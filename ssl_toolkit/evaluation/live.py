"""Training on images that are read and augmented anew each pass: heads, or whole networks.

What protocols on cached features do not need and the others share: batches that depend on (seed, step) alone, exact
gradients over many processes, progress, and unfinished work that is kept and taken up again.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssl_toolkit.criteria.distributed import rank, world_size
from ssl_toolkit.errors import Terminated, UserError
from ssl_toolkit.files import atomic_path
from ssl_toolkit.processes.world import in_any_process
from ssl_toolkit.progress import progress_bar

SAVE_SECONDS = 60.0
"""Between states of unfinished work."""

CHECK_STEPS = 50
"""Between looks at whether the loss is finite: each waits for the device."""

Key = tuple[int, int]
"""(pass over the data, image): with the seed, all that an augmentation depends on."""

Batch = TypeVar("Batch")


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

    def steps_per_pass(self, length: int) -> int:
        """Whole batches in a pass; its rest is dropped, each pass has another order."""
        return length // min(self.batch_size, length)

    def keys(self, step: int, length: int, rank: int = 0, world: int = 1) -> list[Key]:
        """This process's part of the batch of a step, a stretch of the batch that one process would have."""
        size = min(self.batch_size, length)
        number, position = divmod(step, self.steps_per_pass(length))
        order = _order(self.seed, number, length)
        mine = np.array_split(order[position * size : (position + 1) * size], world)[rank]
        return [(number, int(index)) for index in mine]


@lru_cache(maxsize=2)
def _order(seed: int, number: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, number)).permutation(length)


@dataclass(frozen=True)
class Unfinished:
    """Where the state of unfinished work is kept.

    Attributes:
        folder: None keeps none.
        name: of the work, for people.
        identity: everything its outcome depends on: a state of anything else is not taken up.
    """

    folder: Path | None
    name: str
    identity: Mapping[str, Any]

    @property
    def path(self) -> Path | None:
        """The file; its name changes with ``identity``."""
        if self.folder is None:
            return None
        text = json.dumps(dict(self.identity), sort_keys=True, default=str)
        return self.folder / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"

    def load(self) -> dict[str, Any] | None:
        """What was kept, on the CPU; None where nothing was, or it is damaged."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # torch raises many kinds for a file that is none of its own
            Console().print(f"{self.path} is damaged; starting {self.name} anew", highlight=False, soft_wrap=True)
            return None
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep ``state``; a disk that is full costs what is kept, not the work."""
        if self.path is None:
            return
        try:
            with atomic_path(self.path) as temporary:
                torch.save(dict(state), temporary)
        except (OSError, UserError, RuntimeError) as error:
            Console().print(f"{self.name} cannot be resumed: {error}", highlight=False, markup=False, soft_wrap=True)

    def clear(self) -> None:
        """Forget it: the work is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


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
    clip_norm: float | None = None,
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
        clip_norm: of all gradients together.

    Raises:
        UserError: an image that cannot be read, or a loss that is not finite.
        KeyboardInterrupt: stopped by a signal, between two steps, the state kept.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    start = _restore(network, optimizer, unfinished)
    images = min(plan.batch_size, len(samples))
    batches = _batches(samples, plan, start, device)
    saved = time.monotonic()
    cuda = [device] if device.type == "cuda" else []
    with (
        _held_signals() as caught,
        torch.random.fork_rng(devices=cuda),
        progress_bar(title, plan.steps * images, done=start * images, console=console) as bar,
    ):
        for step, batch in zip(range(start, plan.steps), batches):
            torch.manual_seed((plan.seed * 1_000_003 + step) * 4_096 + rank())
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor(step)
            optimizer.zero_grad(set_to_none=True)
            value = loss(batch)
            if finite and step % CHECK_STEPS == 0:
                _require_finite(value, title, step)
            torch.autograd.backward(value)
            sum_gradients(network)
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
            optimizer.step()
            bar.advance(images)
            stopped = in_any_process(bool(caught), device)
            if stopped or time.monotonic() - saved > SAVE_SECONDS:
                _keep(step + 1, network, optimizer, unfinished)
                saved = time.monotonic()
            if stopped:
                kind = Terminated if signal.SIGTERM in caught else KeyboardInterrupt
                kept = "" if unfinished.path is None else "; the same command continues it"
                raise kind(f"stopped {title} at step {step + 1} of {plan.steps}{kept}")
    if start < plan.steps and finite:
        _require_finite(value, title, plan.steps - 1)
    _keep(plan.steps, network, optimizer, unfinished)


def _restore(network: nn.Module, optimizer: torch.optim.Optimizer, unfinished: Unfinished) -> int:
    """Take up the kept state, if there is one; the number of steps done."""
    state = unfinished.load()
    if state is None:
        return 0
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _keep(step: int, network: nn.Module, optimizer: torch.optim.Optimizer, unfinished: Unfinished) -> None:
    if rank() == 0:
        unfinished.save({"step": step, "network": network.state_dict(), "optimizer": optimizer.state_dict()})


def _require_finite(value: Tensor, title: str, step: int) -> None:
    joined_value = joined(value.detach())
    if not bool(joined_value.isfinite()):
        raise UserError(f"{title}: the loss is {float(joined_value)} at step {step}: lower the learning rate")


def joined(count: Tensor) -> Tensor:
    """``count`` added up over the processes, without a graph."""
    total = count.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


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


class _Steps(Dataset[Any]):
    """The batches of this process, by step."""

    def __init__(self, samples: Samples[Any], plan: Plan, start: int) -> None:
        self.samples, self.plan, self.start = samples, plan, start
        self.rank, self.world = rank(), world_size()

    def __len__(self) -> int:
        return self.plan.steps - self.start

    def __getitem__(self, step: int) -> Any:
        try:
            keys = self.plan.keys(self.start + step, len(self.samples), self.rank, self.world)
            return self.samples.batch(keys)
        except UserError as error:  # raised in the loop below: a worker would wrap it in its traceback
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains decides


def _batches(samples: Samples[Batch], plan: Plan, start: int, device: torch.device) -> Iterator[Batch]:
    if min(plan.batch_size, len(samples)) < world_size():
        raise UserError(f"a batch of {min(plan.batch_size, len(samples))} is too small for {world_size()} processes")
    loader: DataLoader[Any] = DataLoader(
        _Steps(samples, plan, start),
        batch_size=None,
        num_workers=plan.workers,
        pin_memory=device.type == "cuda",
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        multiprocessing_context="forkserver" if plan.workers and torch.cuda.is_available() else None,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


@contextmanager
def _held_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM until a step is done; a second SIGINT is not held."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def hold(number: int, frame: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hold) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
