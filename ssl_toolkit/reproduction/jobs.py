"""The runs of a study: which there are, what is done already, and doing the rest, several at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.errors import Terminated, UserError
from ssl_toolkit.files import read_json, write_json
from ssl_toolkit.progress import progress_bar
from ssl_toolkit.reproduction.identity import EVALUATED_BY, code_digest, run_identity
from ssl_toolkit.reproduction.studies import SCALES, Row, Study

DONE = "reproduce.json"
"""Written into a run's folder when it is trained and evaluated."""

MEMORY = "reproduce-memory.json"
"""Written when it is trained, by the process that did."""

PLAN, LOG = "reproduce-plan.json", "reproduce.log"
POLL_SECONDS = 0.5


@dataclass
class ReproduceConfig:
    """The keys of ``configs/reproduce.yaml``.

    Attributes:
        scale: ``mini`` or ``paper``.
        seeds: of the runs, all different.
        out: folder for runs and tables.
        parallel: runs at a time on this machine; None is one for each CPU core at scale mini, else 1.
        evaluate: whether runs are evaluated.
        imagenet, voc: data folders, for ``scale=paper``.
    """

    scale: str = "mini"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    out: str = "reproduced"
    parallel: int | None = None
    evaluate: bool = True
    imagenet: str | None = None
    voc: str | None = None

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be {' or '.join(SCALES)}, not {self.scale!r}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different numbers of 0 or more, not {list(self.seeds)}")
        if self.parallel is not None and self.parallel < 1:
            raise ValueError(f"parallel must be 1 or more, not {self.parallel}")
        if self.scale == "paper" and self.imagenet is None:
            raise ValueError("scale=paper trains on ImageNet: give imagenet=FOLDER")
        if self.scale == "paper" and self.evaluate and self.voc is None:
            raise ValueError("scale=paper evaluates on Pascal VOC: give voc=FOLDER, or evaluate=false")

    @property
    def at_once(self) -> int:
        """Runs at a time."""
        return self.parallel or (max(1, os.cpu_count() or 1) if self.scale == "mini" else 1)

    def evaluations(self) -> list[tuple[str, list[str]]]:
        """Protocols and overrides of ``ssl-toolkit eval``, one call each."""
        if not self.evaluate:
            return []
        if self.scale == "mini":
            return [("knn,linear,segmentation", [])]
        return [
            ("linear_augmented", []),
            ("segmentation_augmented", ["data=voc", override_of("data.root", self.voc)]),
        ]


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        rows: ``(study, row)`` of all that it serves.
        folder: of the run; its name changes with everything its outcome depends on.
    """

    rows: tuple[tuple[str, str], ...]
    seed: int
    config: DictConfig
    folder: Path

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.rows[0][1]}, seed {self.seed}"

    def evaluation_digest(self, options: ReproduceConfig) -> str:
        """What the run's results must have been made by."""
        return f"{code_digest(EVALUATED_BY)} {json.dumps(options.evaluations())}"

    def done(self, options: ReproduceConfig) -> bool:
        """Whether nothing is left to do."""
        path = self.folder / DONE
        return path.is_file() and read_json(path).get("evaluated_by") == self.evaluation_digest(options)


def plan(studies: Sequence[Study], options: ReproduceConfig, overrides: Sequence[str]) -> list[Job]:
    """The runs of ``studies``, each once; row by row within a seed, so that rows can be compared early.

    Raises:
        UserError: a config that does not compose.
    """
    jobs: dict[Path, Job] = {}
    for seed in options.seeds:
        for study in studies:
            for row in study.rows:
                job = _job(study, row, seed, options, overrides)
                same = jobs.get(job.folder)
                rows = (*same.rows, *job.rows) if same else job.rows
                jobs[job.folder] = Job(rows, seed, job.config, job.folder)
    return list(jobs.values())


def _job(study: Study, row: Row, seed: int, options: ReproduceConfig, overrides: Sequence[str]) -> Job:
    given = [*row.overrides[options.scale], f"seed={seed}"]
    given += [f"data.seed={seed}"] if options.scale == "mini" else [override_of("data.root", options.imagenet)]
    config = compose_config("pretrain", [*given, *overrides])
    identity = run_identity(config)
    root = Path(options.out) / "runs"
    config.runs_dir, config.name = str(root), f"{config.method.name}-seed{seed}-{identity}"
    return Job(((study.name, row.name),), seed, config, root / config.name)


def run_jobs(jobs: Sequence[Job], options: ReproduceConfig, console: Console) -> dict[Path, str]:
    """Train and evaluate what is not done, in processes of their own, `ReproduceConfig.at_once` at a time.

    Returns:
        Folder to reason of the runs that failed; the others go on.

    Raises:
        UserError: a config that cannot be built.
        KeyboardInterrupt: the processes are stopped, each with a checkpoint; the same command goes on. `Terminated` for
            SIGTERM.
    """
    waiting = [job for job in jobs if not job.done(options)]
    for job in waiting:  # all of them before any work is done
        training.assemble(job.config.copy())
    reused = len(jobs) - len(waiting)
    console.print(
        f"{len(jobs)} runs: {reused} finished before, {len(waiting)} to do, {min(options.at_once, len(waiting))} at a "
        f"time, in {Path(options.out) / 'runs'}",
        highlight=False,
        soft_wrap=True,
    )
    failed: dict[Path, str] = {}
    running: dict[Path, tuple[Job, subprocess.Popen[bytes]]] = {}
    try:
        bar_of_runs = progress_bar("runs", len(jobs), "runs", done=reused, console=console, log_every=0)
        with _sigterm_raises(), bar_of_runs as bar:
            while waiting or running:
                while waiting and len(running) < options.at_once:
                    job = waiting.pop(0)
                    running[job.folder] = (job, _start(job, options))
                for folder, (job, process) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[folder]
                    bar.advance(1, note=job.title)
                    if process.returncode:
                        failed[folder] = _reason(job)
                        bar.log(f"failed: {job.title}: {failed[folder]}")
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt as stopped:
        _stop([process for _, process in running.values()])
        raise type(stopped)("stopped; the same command goes on where this one was") from None
    return failed


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated` meanwhile: by itself it would end this process and leave those of the runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def make_folder(job: Job, options: ReproduceConfig) -> None:
    """Have the folder of a run say what `ssl_toolkit.reproduction.worker` is to do."""
    config = training.resolved(job.config)
    if not (job.folder / "config.yaml").is_file():
        job.folder.mkdir(parents=True, exist_ok=True)
        training.write_run_files(job.folder, config)
    plan = {
        "config": OmegaConf.to_yaml(config, resolve=True),
        "evaluations": options.evaluations(),
        "evaluated_by": job.evaluation_digest(options),
    }
    write_json(job.folder / PLAN, plan)


def _start(job: Job, options: ReproduceConfig) -> subprocess.Popen[bytes]:
    make_folder(job, options)
    threads = max(1, (os.cpu_count() or 1) // options.at_once)
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ssl_toolkit.reproduction.worker", str(job.folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )


def _reason(job: Job) -> str:
    """The last line that the process of a job wrote."""
    return f"{last_line(job.folder / LOG) or 'it ended without a word'} ({job.folder / LOG})"


def last_line(log: Path, but: str = "\0") -> str:
    """The last line of a log that is not empty and does not start with ``but``; empty where there is none."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith(but)), "")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for processes that the terminal's Ctrl+C has reached too; send it where it has not."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def check_options(options: ReproduceConfig) -> None:
    """Refuse data folders that are not there."""
    for key in ("imagenet", "voc"):
        value = getattr(options, key)
        if value is not None and not Path(value).is_dir():
            raise UserError(f"{key}={value} is not a folder")
