"""The processes that train together: who they are, and what they tell each other outside of a step."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from rich.console import Console

from ssl_toolkit.criteria.distributed import rank, world_size
from ssl_toolkit.errors import UserError

T = TypeVar("T")

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# srun sets a step's number, the script of sbatch and the shell of salloc have none: they are not one of many tasks.
SRUN = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is.

    Attributes:
        rank, size: among all, on all machines.
        local_rank, local_size: among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.local_rank < self.local_size <= self.size and 0 <= self.rank < self.size):
            raise ValueError(f"not a process among others: {self}")
        if self.size % self.local_size:
            raise ValueError(
                f"{self.size} processes, {self.local_size} on this machine: machines must have as many each"
            )

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0


def told_world(environment: Mapping[str, str] = os.environ) -> World | None:
    """The world that torchrun or srun tells of in environment variables; None where neither started this process.

    Raises:
        UserError: the variables contradict each other.
    """
    if all(key in environment for key in TORCHRUN):
        keys, values = TORCHRUN, [environment[key] for key in TORCHRUN]
    elif all(key in environment for key in SRUN):
        keys = (*SRUN[1:], "tasks on this machine")
        values = [environment[key] for key in SRUN[1:]] + [_tasks_here(environment)]
    else:
        return None
    try:
        rank, size, local_rank, local_size = map(int, values)
        return World(rank, size, local_rank, local_size)
    except ValueError as error:
        told = ", ".join(f"{key}={value}" for key, value in zip(keys, values))
        by = "torchrun" if keys is TORCHRUN else "srun"
        raise UserError(f"{by} tells of processes that cannot be ({told}): {error}") from error


def _tasks_here(environment: Mapping[str, str]) -> str:
    """Tasks of each machine of a SLURM step: ``SLURM_STEP_TASKS_PER_NODE=8(x2)`` says it also where nobody asked."""
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_NTASKS_PER_NODE")
    if counts is None:
        nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1"))
        return str(int(environment["SLURM_NTASKS"]) // int(nodes))
    different = sorted(set(re.sub(r"\(x\d+\)", "", counts).split(",")))
    if len(different) > 1:
        raise UserError(f"machines of this SLURM step have {counts} tasks: ask for as many each, --ntasks-per-node=8")
    return different[0]


def current_world(environment: Mapping[str, str] = os.environ) -> World:
    """`told_world`; alone where none is told."""
    return told_world(environment) or World()


def planned_world(devices: int, device: torch.device, environment: Mapping[str, str] = os.environ) -> World:
    """The world this process is in, or the one it has to start.

    Args:
        devices: how many are asked for, 0 for one per GPU; says nothing where torchrun or srun started them.
        device: of the run.

    Raises:
        UserError: several processes on a device that takes one.
    """
    world = told_world(environment)
    if world is None:
        count = devices or (torch.cuda.device_count() if device.type == "cuda" else 1)
        world = World(size=count, local_size=count)
    if world.local_size > 1 and device.type == "mps":
        raise UserError(f"devices: {world.local_size} processes cannot share an Apple GPU; take one")
    return world


def process_device(device: torch.device, world: World) -> torch.device:
    """The device of this process among those of its machine.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if device.type != "cuda" or world.local_size == 1:
        return device
    if device.index is not None:
        raise UserError(f"device={device} names one GPU for {world.local_size} processes: take device=cuda")
    if world.local_size > torch.cuda.device_count():
        raise UserError(f"{world.local_size} processes on a machine with {torch.cuda.device_count()} GPUs: start fewer")
    return torch.device("cuda", world.local_rank)


def meeting_point(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port where the processes of a SLURM step find each other: its first machine, and a port of the job.

    ``MASTER_ADDR`` and ``MASTER_PORT`` take precedence.
    """
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    host = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", host.group()) if host else nodes
    job, step = (int(environment.get(key, "0")) for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = 20_000 + (job + 97 * step) % 40_000
    return environment.get("MASTER_ADDR", first), int(environment.get("MASTER_PORT", port))


def join(world: World, device: torch.device, hours: float | None = None) -> None:
    """Connect this process with the others of its world, by NCCL on GPUs and gloo elsewhere; once is enough.

    Args:
        device: of this process.
        hours: that one may wait for another; None is torch's 10 minutes for NCCL and 30 for gloo.
    """
    if world.size == 1 or dist.is_initialized():
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    host, port = meeting_point()
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"tcp://{host}:{port}",
        rank=world.rank,
        world_size=world.size,
        device_id=device if cuda else None,
        timeout=None if hours is None else datetime.timedelta(hours=hours),
    )


def leave() -> None:
    """Part from the other processes, when all has gone well; after an error NCCL could wait for them for ever."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def agree(action: Callable[[], T]) -> T:
    """What ``action`` gives in this process, after it has succeeded in all.

    Raises:
        UserError: of the first process where there was one, in every process, so that none waits for another.
    """
    if world_size() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except UserError as raised:
        error = raised
    said: list[str | None] = [None] * world_size()
    dist.all_gather_object(said, None if error is None else str(error))
    wrong = next((message for message in said if message is not None), None)
    if wrong is not None:
        raise UserError(wrong) from error
    return result  # type: ignore[return-value]


def from_first(action: Callable[[], T]) -> T:
    """What ``action`` gives in process 0, in every process.

    Raises:
        UserError: of process 0, in every process.
    """
    if world_size() == 1:
        return action()
    result = [agree(lambda: action() if rank() == 0 else None)]
    dist.broadcast_object_list(result, src=0)
    return result[0]  # type: ignore[return-value]


def in_any_process(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true in one process or more; every process must ask, and gets the same answer."""
    if world_size() == 1:
        return flag
    asked = torch.tensor(int(flag), device=device)
    dist.all_reduce(asked, dist.ReduceOp.MAX)
    return bool(asked.item())


def first_to_tell() -> bool:
    """Whether this process says what went wrong: of many that fail, the first to ask does.

    Before they are connected it is one of each machine.
    """
    if world_size() == 1:
        try:
            return current_world().local_rank == 0
        except UserError:
            return True
    try:
        return int(dist.distributed_c10d._get_default_store().add("ssl-toolkit/told", 1)) == 1
    except RuntimeError:  # the process that kept the count is gone
        return True


def console_of(world: World, console: Console | None = None) -> Console:
    """``console`` in the process that prints, a silent one in the others."""
    return (console or Console()) if world.first else Console(quiet=True)
