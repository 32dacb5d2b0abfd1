"""SLURM jobs: what is asked for, and runs that are pre-empted, requeued and end as if they had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.processes.world import World
from ssl_toolkit.registry import typed
from ssl_toolkit.slurm_commands import train_and_report
from ssl_toolkit.training.options import TrainerConfig
from ssl_toolkit.training.slurm import Job, SlurmConfig
from tests.fake_slurm import JOB_OF_TWO, fake_slurm, preempt
from tests.helpers import quick_overrides
from tests.training.killing import metrics, runs_differ

submitit = pytest.importorskip("submitit")

PATIENCE = 600
needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")


def options(runs: Path, name: str, *more: str) -> list[str]:
    return [
        *quick_overrides(runs, "vicreg"),
        f"name={name}",
        "trainer.device=cpu",
        "trainer.epochs=10",
        "trainer.log_every=1",
        "monitor.knn_every=null",
        *more,
    ]


def test_the_schema_is_the_config() -> None:
    config = compose_config("pretrain", ["launcher=slurm"]).launcher
    values: Any = OmegaConf.to_container(config)
    assert values.pop("name") == "slurm"
    assert typed(SlurmConfig, values, "launcher") == SlurmConfig()


def test_what_a_job_asks_for() -> None:
    trainer = TrainerConfig(devices=8, workers=6)
    asked = SlurmConfig(nodes=4, partition="gpu", mem_gb=500, setup=["module load cuda"]).resources(trainer)
    assert asked == {
        "name": "ssl-toolkit",
        "nodes": 4,
        "tasks_per_node": 8,
        "gpus_per_node": 8,
        "cpus_per_task": 7,
        "partition": "gpu",
        "mem_gb": 500,
        "timeout_min": 1440,
        "signal_delay_s": 300,
        "array_parallelism": 256,
        "setup": ["module load cuda"],
    }
    assert SlurmConfig(nodes=4).world(trainer) == World(size=32, local_size=8)
    assert "gpus_per_node" not in SlurmConfig().resources(TrainerConfig(device="cpu"))
    assert SlurmConfig(gpus_per_node=1).resources(TrainerConfig(device="cpu"))["gpus_per_node"] == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("launcher.partitoin=gpu", "unknown key 'launcher.partitoin'"),
        ("launcher.nodes=0", "launcher: nodes must be at least 1, not 0"),
        ("launcher.timeout_min=4", "signal_delay_s must lie between 1 and timeout_min, not 300 s"),
        ("launcher.timeout_min=soon", "launcher.timeout_min"),
        ("trainer.devices=0", "say how many processes a machine has, launcher.tasks_per_node=8"),
        ("launcher.nodes=3", "16 images do not divide by 3 processes; take 15"),
        ("trainer.device=gpu", "unknown device 'gpu'"),
        ("trainer.device=cuda", "there is no srun here"),  # of this machine's devices nothing is asked
        ("trainer.epochs=0", "epochs must be at least 1"),
    ],
)
def test_wrong_jobs_are_refused_before_any_work(
    overrides: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = ["pretrain", *options(tmp_path / "runs", "run"), "launcher=slurm", *overrides.split()]
    assert main(argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_without_submitit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["pretrain", *options(tmp_path, "run"), "launcher=slurm", "launcher.dry_run=true"]) == 2
    assert "pip install 'ssl-toolkit[slurm]'" in capsys.readouterr().err


DRY = ["launcher=slurm", "launcher.dry_run=true", "launcher.nodes=2", "launcher.partition=gpu", "trainer.device=cuda"]


def test_dry_run_prints_the_script_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch, no srun
    more = ["trainer.devices=4", "launcher.setup=[module load cuda]", "+launcher.additional_parameters.mail-type=END"]
    assert main(["pretrain", *options(tmp_path / "runs", "run"), *DRY, *more]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#!/bin/bash\n")
    lines = printed.splitlines()
    for flag in (
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "cpus-per-task=1",
        "partition=gpu",
        "time=1440",
        "signal=USR2@300",
        "mail-type=END",
        "open-mode=append",
    ):
        assert f"#SBATCH --{flag}" in lines
    assert not any("--array" in line for line in lines)
    assert lines.index("module load cuda") < next(n for n, line in enumerate(lines) if line.startswith("srun "))
    assert str(tmp_path / "runs" / "run" / "slurm") in printed
    assert not (tmp_path / "runs").exists()


def test_dry_run_of_a_sweep_is_an_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["method.invariance=10,25,50", "launcher.array_parallelism=2"]
    assert main(["pretrain", "-m", *options(tmp_path, "run"), *DRY, *sweep]) == 0
    assert "#SBATCH --array=0-2%2" in capsys.readouterr().out.splitlines()
    assert main(["pretrain", "-m", *options(tmp_path, "run"), *DRY, "launcher.nodes=1,2"]) == 2
    assert "cannot be swept" in capsys.readouterr().err


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with SLURM's commands."""
    return fake_slurm(tmp_path / "cluster", monkeypatch)


def test_a_sweep_is_submitted_as_an_array(cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    assert main(["pretrain", "-m", *options(runs, "sweep"), "launcher=slurm", "method.invariance=10,25"]) == 0
    printed = capsys.readouterr().out
    names = ["sweep-method.invariance-10", "sweep-method.invariance-25"]
    for number, name in enumerate(names):
        assert f"job      77_{number}: {runs / name}" in printed
        assert training.read_run_config(runs / name).method.invariance == float(name.rsplit("-", 1)[1])
        assert "launcher" not in training.read_run_config(runs / name)
    (files,) = (path for path in runs.iterdir() if path.name not in names)
    assert {path.name for path in files.glob("*.pkl")} == {"77_0_submitted.pkl", "77_1_submitted.pkl"}
    assert "#SBATCH --array=0-1%2" in (cluster / "script.sh").read_text()


def test_sbatch_may_refuse(cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: nope' >&2\nexit 1\n")
    assert main(["pretrain", *options(tmp_path / "runs", "run"), "launcher=slurm"]) == 2
    err = capsys.readouterr().err
    assert "invalid partition specified: nope" in err
    assert f"run={tmp_path / 'runs' / 'run'} launcher=slurm" in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err


def wait_for_rows(path: Path, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists() or len(path.read_text().splitlines()) <= count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_job_of_two_tasks_is_preempted_and_requeued(cluster: Path, tmp_path: Path) -> None:
    runs, job = tmp_path / "runs", ["bash", str(cluster / "script.sh")]
    more = ["launcher=slurm", "trainer.devices=2"]
    assert main(["pretrain", *options(runs, "run"), *more]) == 0
    environment = os.environ | JOB_OF_TWO
    first = subprocess.Popen(job, env=environment, start_new_session=True)
    wait_for_rows(runs / "run" / "metrics.csv", 2)
    preempt(first)
    first.wait(PATIENCE)
    said = (cluster / "task-0.log").read_text()
    assert (cluster / "requeued").read_text() == "requeue 77\n", said
    steps = len(metrics(runs / "run" / "metrics.csv"))
    assert 2 <= steps < 40
    assert not (runs / "run" / "backbone.safetensors").exists()

    subprocess.run(job, env=environment, timeout=PATIENCE, check=True)
    assert [row["step"] for row in metrics(runs / "run" / "metrics.csv")] == [str(n) for n in range(1, 41)]
    assert f"stopped at step {steps}; continue with" in said
    assert (runs / "run" / "report.html").exists()
    assert (cluster / "requeued").read_text().count("\n") == 1
    assert "resuming" in (cluster / "task-0.log").read_text()


def task_of(controller: int) -> int:
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    return int(children[0])


@pytest.mark.command
@needs_proc
def test_a_preempted_job_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """By submitit's local executor, whose jobs are processes of this machine."""
    config = training.resolved(compose_config("pretrain", options(tmp_path, "run")))
    run = training.prepare(config, World())
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=10, signal_delay_s=1)
    job = executor.submit(Job(partial(train_and_report, run, OmegaConf.to_yaml(config))))
    wait_for_rows(run / "metrics.csv", 2)
    os.kill(task_of(int(job.job_id)), signal.SIGUSR2)
    job.result()
    printed = job.stdout()
    assert "Requeued job" in printed
    assert "resuming" in printed
    whole = training.pretrain(compose_config("pretrain", options(tmp_path, "whole")), Console(quiet=True))
    assert runs_differ(whole, run) is None


def test_a_job_that_is_done_has_nothing_left_to_do(tmp_path: Path) -> None:
    config = training.resolved(compose_config("pretrain", options(tmp_path, "run")))
    run = training.prepare(config, World())
    (run / "backbone.safetensors").touch()
    before = sorted(run.iterdir())
    training.carry_on(run, config, Console(quiet=True))
    assert sorted(run.iterdir()) == before


def test_resuming_can_be_submitted_too(cluster: Path, tmp_path: Path) -> None:
    config = training.resolved(compose_config("pretrain", options(tmp_path, "run")))
    run = training.prepare(config, World())
    assert main(["pretrain", override_of("run", run), "launcher=slurm", "launcher.partition=other"]) == 0
    assert "#SBATCH --partition=other" in (cluster / "script.sh").read_text().splitlines()


def test_the_runs_of_a_sweep_go_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "-m", *options(tmp_path, "run"), "launcher=slurm,local"]) == 2
    assert "launcher: the runs of a sweep are all trained here or all submitted" in capsys.readouterr().err
