"""Studies whose runs are SLURM jobs: queued once, collected later, failed ones named."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from ssl_toolkit import training
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import read_json, write_json
from ssl_toolkit.reproduction import cluster, read_study
from ssl_toolkit.reproduction.cluster import HANDED
from ssl_toolkit.reproduction.jobs import DONE, PLAN, Job, ReproduceConfig, plan
from tests.fake_slurm import JOB_OF_TWO, fake_slurm, preempt
from tests.reproduction.test_reproduction import QUICK

pytest.importorskip("submitit")

PATIENCE = 600
SLURM = ["launcher=slurm", "launcher.partition=gpu", "trainer.device=cpu"]
OPTIONS = ["seeds=[0]", *QUICK]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with SLURM's commands; the test works in the folder above it."""
    monkeypatch.chdir(tmp_path)
    return fake_slurm(tmp_path / "cluster", monkeypatch)


def runs() -> dict[str, Path]:
    """Job to folder."""
    return {read_json(path)["job"]: path.parent for path in Path("reproduced/runs").glob(f"*/{HANDED}")}


def end(run: Path) -> None:
    """Leave a run as its job does."""
    (run / "metrics.csv").write_text("step,images_per_second,peak_memory_gib\n1,50,11\n50,50,12\n")
    write_json(run / DONE, {"evaluated_by": read_json(run / PLAN)["evaluated_by"]})


def test_runs_are_queued_once_and_collected_later(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["reproduce", "table11", *OPTIONS]
    assert main([*argv, *SLURM]) == 0
    printed = capsys.readouterr().out
    first, second = (runs()[number] for number in ("77_0", "77_1"))
    assert f"job      77_0: VICReg, seed 0, {first}" in printed
    assert "2 of 2 runs are SLURM's: the same command later" in printed
    script = (slurm / "script.sh").read_text()
    assert "#SBATCH --array=0-1%2" in script
    assert "#SBATCH --partition=gpu" in script
    assert "launcher" not in training.read_run_config(first)
    (slurm / "script.sh").unlink()

    (slurm / "queue").write_text("77_0 RUNNING\n77_1 PENDING\n")
    assert main([*argv, *SLURM]) == 0  # neither is queued twice
    printed = capsys.readouterr().out
    assert "waiting for VICReg, seed 0: SLURM job 77_0, RUNNING" in printed
    assert "waiting for VICRegL, seed 0: SLURM job 77_1, PENDING" in printed
    assert not (slurm / "script.sh").exists()
    assert "--jobs=77 --array" in (slurm / "asked").read_text()

    end(first)
    assert main([*argv, "trainer.device=cpu"]) == 0  # nor trained here
    assert "1 of 2 runs are SLURM's" in capsys.readouterr().out

    end(second)
    (slurm / "asked").unlink()
    assert main([*argv, "trainer.device=cpu"]) == 0
    assert "SLURM" not in capsys.readouterr().out
    assert not (slurm / "asked").exists()
    rows = json.loads(Path("reproduced/table11-mini.json").read_text())["rows"]
    assert [row["memory"]["mean"] for row in rows] == [12.0, 12.0]


def test_a_job_that_failed_is_shown_and_queued_again_by_launcher_slurm_alone(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["reproduce", "table11", *OPTIONS]
    assert main([*argv, *SLURM]) == 0
    end(runs()["77_0"])
    lost = runs()["77_1"]
    log = Path(read_json(lost / HANDED)["files"]) / "77_1_0_log.err"
    log.write_text("starting\nerror: no room\nsrun: error: task 0: Exited with exit code 2\n")
    (slurm / "script.sh").unlink()
    capsys.readouterr()

    assert main([*argv, "trainer.device=cpu"]) == 2
    said = capsys.readouterr()
    assert "failed: VICRegL, seed 0: error: no room (SLURM job 77_1" in " ".join(said.out.split())
    assert "1 of 2 runs failed; the same command tries them again; those that SLURM was given need launcher=slurm" in (
        said.err
    )
    assert not (slurm / "script.sh").exists()
    assert not (lost / "reproduce.log").exists()

    assert main([*argv, *SLURM]) == 0
    said = capsys.readouterr()
    assert "failed: VICRegL, seed 0: error: no room" in said.out
    assert f"job      77: VICRegL, seed 0, {lost}" in said.out
    assert "--array" not in (slurm / "script.sh").read_text()
    assert read_json(lost / HANDED) == {"job": "77", "files": str((lost / "slurm").absolute())}


def test_squeue_must_answer_where_it_matters(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["reproduce", "table11", *OPTIONS, *SLURM]
    assert main(argv) == 0
    (slurm / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    )
    (slurm / "script.sh").unlink()
    assert main(argv) == 2
    assert "squeue does not tell whether they have ended (slurm_load_jobs error: Unable" in capsys.readouterr().err
    assert not (slurm / "script.sh").exists()
    (slurm / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert main(argv) == 0  # long ended: SLURM has forgotten it
    assert "ended without a word (SLURM job 77_0" in " ".join(capsys.readouterr().out.split())


def test_dry_run_prints_the_script_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["reproduce", "table4,table11", "seeds=[0,1]", *QUICK, *SLURM, "launcher.dry_run=true", "trainer.devices=2"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "#SBATCH --array=0-7%8" in lines  # rows that both have are one run
    assert "#SBATCH --ntasks-per-node=2" in lines
    assert not list(tmp_path.iterdir())


def test_runs_that_ask_for_other_machines_are_another_array(tmp_path: Path) -> None:
    options = ReproduceConfig(out=str(tmp_path), seeds=[0])
    jobs = plan([read_study("table4")], options, [*QUICK, *SLURM])
    jobs[2].config.trainer.workers = 3
    one, two = cluster.scripts(jobs)
    assert "#SBATCH --array=0-2%3" in one
    assert "#SBATCH --cpus-per-task=4" in two
    assert "--array" not in two


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["launcher.nodes=0"], "launcher: nodes must be at least 1, not 0"),
        (["trainer.devices=3"], "16 images do not divide by 3 processes"),
        ([], "there is no srun here"),
    ],
)
def test_wrong_jobs_are_refused_before_any_work(
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["reproduce", "table11", *OPTIONS, *SLURM, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_runs_of_a_study_go_the_same_way(tmp_path: Path) -> None:
    config = compose_config("pretrain", ["experiment=digits_vicregl"])
    job = Job((("table3", "none"),), 0, config, tmp_path / "run")
    with pytest.raises(UserError, match="all trained here or all submitted"):
        cluster.queue([job], ReproduceConfig(), Console(quiet=True))


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.slow
def test_a_job_of_two_tasks_is_preempted_while_it_evaluates(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["reproduce", "figure3", *OPTIONS, "trainer.devices=2", "trainer.device=cpu"]
    assert main([*argv, *SLURM]) == 0
    run, script = runs()["77"], ["bash", str(slurm / "script.sh")]
    first = subprocess.Popen(script, env=os.environ | JOB_OF_TWO, start_new_session=True)
    wait_for(run / "backbone.safetensors", first)
    preempt(first)
    wait_for(slurm / "requeued", first)
    os.killpg(first.pid, 9)  # as SLURM does
    first.wait(PATIENCE)
    assert not (run / DONE).exists()

    subprocess.run(script, env=os.environ | JOB_OF_TWO, timeout=PATIENCE, check=True)
    assert (run / DONE).is_file(), (slurm / "task-0.log").read_text()
    assert (run / "report.html").is_file()
    capsys.readouterr()
    assert main(argv) == 0
    assert "1 finished before, 0 to do" in capsys.readouterr().out
    table = json.loads(Path("reproduced/figure3-mini.json").read_text())
    assert table["rows"][0]["segmentation"]["mean"] > 0
    assert table["pictures"] == [f"figure3-mini-matches-VICRegL-seed0{suffix}" for suffix in (".png", ".svg")]
    page = Path("reproduced/figure3-mini.md").read_text()
    for name in table["pictures"]:
        assert (Path("reproduced") / name).stat().st_size > 10_000
        assert name.endswith(".svg") or f"]({name})" in page
