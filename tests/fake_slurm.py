"""SLURM's commands as far as tests need them: ``srun`` starts two tasks on this machine."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SBATCH = """#!/bin/sh
cp "$1" "{folder}/script.sh"
echo "Submitted batch job 77"
"""
SRUN = """#!{python}
import os, signal, subprocess, sys
arguments = sys.argv[1:]
while arguments[0].startswith("--"):
    option = arguments.pop(0)
    if option in ("--output", "--error"):
        arguments.pop(0)
tasks = []
for rank in range({tasks}):
    said = dict(SLURM_PROCID=rank, SLURM_LOCALID=rank, SLURM_NODEID=0, SLURM_STEP_ID=0)
    log = open(os.path.join("{folder}", "task-%d.log" % rank), "a")
    environment = os.environ | {{key: str(value) for key, value in said.items()}}
    tasks.append(subprocess.Popen(arguments, env=environment, stdout=log, stderr=log))
signal.signal(signal.SIGUSR2, lambda number, frame: [task.send_signal(number) for task in tasks])
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SQUEUE = """#!/bin/sh
echo "$@" >> "{folder}/asked"
cat "{folder}/queue"
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "{folder}/requeued"
"""

JOB_OF_TWO = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "127.0.0.1",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}
"""What SLURM tells a job of two tasks."""


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with SLURM's commands: ``sbatch`` keeps the script, ``squeue`` prints the file ``queue``."""
    folder.mkdir()
    (folder / "queue").touch()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
        path = folder / name
        path.write_text(text.format(folder=folder, python=sys.executable, tasks=2))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def preempt(job: subprocess.Popen[bytes]) -> None:
    """Signal the tasks of a script that is running."""
    srun = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True)
    os.kill(int(srun.stdout.split()[0]), signal.SIGUSR2)
