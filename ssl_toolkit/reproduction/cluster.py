"""The runs of studies as SLURM jobs: queued once, asked after, and their logs read where they failed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import read_json, write_json
from ssl_toolkit.registry import typed
from ssl_toolkit.reproduction.jobs import Job, ReproduceConfig, last_line, make_folder
from ssl_toolkit.reproduction.worker import work_as_job
from ssl_toolkit.slurm_commands import slurm_options
from ssl_toolkit.training import TrainerConfig
from ssl_toolkit.training import slurm as jobs_of
from ssl_toolkit.training.slurm import SlurmConfig

HANDED = "reproduce-slurm.json"
"""Written into the folder of a run that SLURM was given."""

SQUEUE_SECONDS = 120


@dataclass(frozen=True)
class Handed:
    """A run that SLURM was given.

    Attributes:
        job: its number, ``77`` or ``77_3``.
        files: folder of the job's script and logs.
    """

    job: str
    files: str

    @classmethod
    def of(cls, run: Path) -> Handed | None:
        """Of the run in that folder; None where it was not given to SLURM."""
        path = run / HANDED
        return typed(cls, read_json(path), str(path)) if path.is_file() else None

    @property
    def reason(self) -> str:
        """Why it ended before it was done, as far as its log says; ``srun`` repeats that something ended."""
        log = jobs_of.log_of(Path(self.files), self.job)
        return f"{last_line(log, but='srun: ') or 'it ended without a word'} (SLURM job {self.job}, {log})"


def ask(jobs: Sequence[Job], options: ReproduceConfig) -> tuple[dict[Path, str], dict[Path, str]]:
    """What has become of the runs that SLURM was given.

    Returns:
        Folder to the job and its state for those that are queued or running, and folder to reason for those that ended
        before they were done.

    Raises:
        UserError: there are such runs that are not done, and SLURM cannot be asked.
    """
    given = [(job, handed) for job in jobs if not job.done(options) and (handed := Handed.of(job.folder))]
    states = _states([handed.job for _, handed in given]) if given else {}
    queued = {j.folder: f"SLURM job {h.job}, {states[h.job]}" for j, h in given if h.job in states}
    failed = {j.folder: h.reason for j, h in given if h.job not in states and not j.done(options)}
    return queued, failed


def _states(numbers: Sequence[str]) -> dict[str, str]:
    """State of those jobs that have not ended."""
    ids = ",".join(dict.fromkeys(number.split("_")[0] for number in numbers))
    command = ["squeue", f"--jobs={ids}", "--array", "--noheader", "--format=%i %T"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SQUEUE_SECONDS)
        why = "" if said.returncode == 0 or "Invalid job id" in said.stderr else said.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        raise UserError(
            f"SLURM was given jobs {ids}, and squeue does not tell whether they have ended ({why.splitlines()[-1]}): "
            "try again on a machine of the cluster"
        )
    return {number: state for number, _, state in (line.strip().partition(" ") for line in said.stdout.splitlines())}


def _groups(jobs: Sequence[Job]) -> list[tuple[SlurmConfig, TrainerConfig, list[Job]]]:
    """Runs that ask for the same machines, and thus can be one array."""
    found: dict[str, tuple[SlurmConfig, TrainerConfig, list[Job]]] = {}
    for job in jobs:
        slurm = slurm_options(job.config)
        if slurm is None:
            raise UserError("launcher: the runs of a study are all trained here or all submitted")
        trainer = typed(TrainerConfig, job.config.trainer, "trainer")
        key = json.dumps(slurm.resources(trainer), sort_keys=True, default=str)
        found.setdefault(key, (slurm, trainer, []))[2].append(job)
    for slurm, trainer, group in found.values():  # all of them before anything is made
        for job in group:
            training.assemble(job.config.copy(), slurm.world(trainer))
    return list(found.values())


def _files(group: Sequence[Job]) -> Path:
    folder = group[0].folder.absolute()
    return folder / "slurm" if len(group) == 1 else jobs_of.job_folder(folder.parent)


def scripts(jobs: Sequence[Job]) -> list[str]:
    """What ``sbatch`` would be given for those runs."""
    return [jobs_of.script(slurm, trainer, _files(group), len(group)) for slurm, trainer, group in _groups(jobs)]


def queue(jobs: Sequence[Job], options: ReproduceConfig, console: Console) -> dict[Path, str]:
    """Give runs to SLURM, those that ask for the same machines as one array.

    Returns:
        Folder to job.

    Raises:
        UserError: a config is wrong, there is no SLURM here, or it does not take the jobs.
    """
    groups = _groups(jobs)
    for slurm, trainer, _ in groups:
        jobs_of.check_slurm(slurm, trainer)
    queued = {}
    for slurm, trainer, group in groups:
        for job in group:
            make_folder(job, options)
        files = _files(group)
        work = [jobs_of.Job(partial(work_as_job, job.folder.absolute())) for job in group]
        numbers = jobs_of.submit(work, slurm, trainer, files, "the same command tries again")
        for number, job in zip(numbers, group):
            write_json(job.folder / HANDED, asdict(Handed(number, str(files))))
            queued[job.folder] = f"SLURM job {number}, queued"
            console.print(f"job      {number}: {job.title}, {job.folder}", highlight=False, soft_wrap=True)
        console.print(f"logs     {files}", highlight=False, soft_wrap=True)
    return queued
