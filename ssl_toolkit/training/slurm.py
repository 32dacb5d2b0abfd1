"""Runs as SLURM jobs, through submitit: one job a run, requeued when it is pre-empted or its time is up."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ssl_toolkit.errors import Terminated, UserError
from ssl_toolkit.processes.world import World, current_world
from ssl_toolkit.training.options import TrainerConfig


@dataclass
class SlurmConfig:
    """What to ask of SLURM; names as in Hydra's submitit launcher.

    Attributes:
        dry_run: print the script of ``sbatch``; nothing is submitted or written.
        partition, account, qos, constraint: flags of ``sbatch``.
        nodes: machines.
        tasks_per_node: processes on each; None takes ``trainer.devices``.
        gpus_per_node: None asks for one a process, for none where ``trainer.device`` is ``cpu``.
        cpus_per_task: None takes ``trainer.workers`` + 1.
        mem_gb: of each machine.
        timeout_min: minutes after which a job is requeued.
        max_num_timeout: how often it is; pre-emption does not count.
        signal_delay_s: seconds before the end at which a job is told to stop.
        array_parallelism: jobs of a sweep at the same time.
        setup: shell commands before the run.
        additional_parameters: other flags of ``sbatch``.
    """

    dry_run: bool = False
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1
    tasks_per_node: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    timeout_min: int = 1440
    max_num_timeout: int = 20
    signal_delay_s: int = 300
    array_parallelism: int = 256
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("nodes", "tasks_per_node", "cpus_per_task", "timeout_min", "array_parallelism"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be at least 1, not {value}")
        if self.max_num_timeout < 0 or (self.gpus_per_node or 0) < 0:
            raise ValueError("max_num_timeout and gpus_per_node must not be negative")
        if not 1 <= self.signal_delay_s < 60 * self.timeout_min:
            raise ValueError(f"signal_delay_s must lie between 1 and timeout_min, not {self.signal_delay_s} s")

    def world(self, trainer: TrainerConfig) -> World:
        """The processes of a job.

        Raises:
            UserError: it is not said how many a machine has.
        """
        tasks = self.tasks_per_node or trainer.devices
        if not tasks:
            raise UserError("trainer.devices=0: say how many processes a machine has, launcher.tasks_per_node=8")
        return World(size=self.nodes * tasks, local_size=tasks)

    def resources(self, trainer: TrainerConfig) -> dict[str, Any]:
        """Parameters of a submitit executor."""
        tasks = self.world(trainer).local_size
        gpus = 0 if trainer.device == "cpu" else tasks
        asked = {
            "name": "ssl-toolkit",
            "nodes": self.nodes,
            "tasks_per_node": tasks,
            "gpus_per_node": (gpus if self.gpus_per_node is None else self.gpus_per_node) or None,
            "cpus_per_task": self.cpus_per_task or trainer.workers + 1,
            "setup": list(self.setup) or None,
            "additional_parameters": dict(self.additional_parameters) or None,
        }
        plain = ("partition", "account", "qos", "constraint", "mem_gb", "timeout_min")
        asked |= {key: getattr(self, key) for key in (*plain, "signal_delay_s", "array_parallelism")}
        return {key: value for key, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """A run as submitit's job: called in each of its processes, as often as it is requeued.

    Attributes:
        work: does what is left to do, and stops on SIGTERM so that it can go on; pickled, thus a module's function or
            a ``partial`` of one.
    """

    work: Callable[[], object]

    def __call__(self) -> None:
        """Start the work or go on with it; stop with a checkpoint on the signal of pre-emption."""
        import submitit
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        number = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        requeue: Any = signal.getsignal(number)  # submitit's: it may not cut into a step of several processes
        told = Told()
        signal.signal(signal.SIGTERM, told.stop)
        signal.signal(number, told.preempt)
        try:
            self.work()
        except Terminated as stopped:
            print(stopped, flush=True)
            if told.preempted and current_world().first:
                requeue(number, None)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            os._exit(2)  # others may wait for this process: SLURM ends them

    def checkpoint(self) -> Any:
        """What to queue in the place of a job that was pre-empted: the same, since it finds its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Told:
    """Signals of a job: its pre-emption becomes a SIGTERM, which stops training between two steps."""

    def __init__(self) -> None:
        self.preempted = False

    def preempt(self, number: int, frame: FrameType | None) -> None:
        """Handles submitit's signal."""
        self.preempted = True
        signal.raise_signal(signal.SIGTERM)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGTERM while there is no training to stop. The first process alone leaves: it might wait for others,
        and hear of the signal only once they have done their part."""
        if current_world().first:
            raise Terminated("stopped before or after training")


def _executor(folder: Path, resources: dict[str, Any], retries: int, *, dry: bool = False) -> Any:
    """A submitit executor.

    Raises:
        UserError: submitit is not installed, or this is no machine of a SLURM cluster.
    """
    try:
        from submitit import SlurmExecutor
    except ImportError as error:
        raise UserError("launcher=slurm needs submitit: pip install 'ssl-toolkit[slurm]'") from error

    class Here(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            """A script can be written where there is no srun."""
            return 1 if dry else super().affinity()

    try:
        executor = Here(folder, max_num_timeout=retries)
    except RuntimeError as error:
        raise UserError(
            "launcher=slurm: there is no srun here; submit from a machine of the cluster, or see the script with "
            "launcher.dry_run=true"
        ) from error
    executor.update_parameters(**executor._convert_parameters(resources))
    return executor


def script(options: SlurmConfig, trainer: TrainerConfig, folder: Path, jobs: int) -> str:
    """What ``sbatch`` would be given for ``jobs`` runs.

    Args:
        folder: for the files of the job.
    """
    executor = _executor(folder, options.resources(trainer), options.max_num_timeout, dry=True)
    if jobs > 1:
        executor.parameters["map_count"] = jobs
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def check_slurm(options: SlurmConfig, trainer: TrainerConfig) -> None:
    """Refuse to submit where that cannot be done, before any folder is made.

    Raises:
        UserError: see `submit`.
    """
    _executor(Path("slurm"), options.resources(trainer), options.max_num_timeout)


def submit(jobs: Sequence[Job], options: SlurmConfig, trainer: TrainerConfig, folder: Path, again: str) -> list[str]:
    """Queue runs whose folders are made, several as one job array; returns their job ids.

    Args:
        trainer: of all runs, as far as `SlurmConfig.resources` reads it.
        folder: for the scripts, logs and pickles of the jobs, on a disk that the cluster shares.
        again: what to do where SLURM does not take them.

    Raises:
        UserError: there is no SLURM here, or it does not take the jobs.
    """
    executor = _executor(folder, options.resources(trainer), options.max_num_timeout)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with executor.batch():
            queued = [executor.submit(job) for job in jobs]
        return [str(job.job_id) for job in queued]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = str(error).strip().splitlines() or ["no reason given"]
        raise UserError(f"sbatch did not take the job: {said[-1]}; {again}") from error


def log_of(folder: Path, number: str) -> Path:
    """What the first process of job ``number`` writes to standard error.

    Args:
        folder: of `submit`.
    """
    return folder / f"{number}_0_log.err"


def job_folder(root: Path) -> Path:
    """Where the files of an array lie."""
    return root / f"slurm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
