"""Studies: their configs, which runs are shared and used again, statistics, and a sweep that fails in part."""

from __future__ import annotations

import io
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from ssl_toolkit import picture_commands, training
from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import write_json
from ssl_toolkit.methods import METHODS
from ssl_toolkit.registry import typed
from ssl_toolkit.reproduction import jobs as jobs_module
from ssl_toolkit.reproduction import read_study, run_identity, study_names
from ssl_toolkit.reproduction.jobs import DONE, MEMORY, Job, ReproduceConfig, plan, run_jobs
from ssl_toolkit.reproduction.summary import Estimate, Summary, as_csv, markdown, summarise, terminal
from tests.helpers import heed_interrupts

QUICK = ["data.train_size=32", "data.val_size=16", "data.test_size=16", "trainer.epochs=1", "trainer.batch_size=16",
         "trainer.workers=0", "trainer.precision=fp32"]  # fmt: skip
QUIET = Console(quiet=True)


@pytest.mark.parametrize("name", study_names())
@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_every_row_of_every_study_composes_and_differs_from_the_others(name: str, scale: str) -> None:
    study = read_study(name)
    methods = []
    for row in study.rows:
        config = compose_config("pretrain", row.overrides[scale])
        methods.append(json.dumps([OmegaConf.to_container(training.resolved(config).method), len(config.views.groups)]))
        METHODS.options(config.method)
        assert set(row.paper) <= set(study.columns)
        expected = "digit_scenes" if scale == "mini" else "imagenet"
        assert config.data.name == expected
    assert set(study.pictures) <= set(picture_commands.KINDS)
    assert len(set(methods)) == len(methods)


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_the_study_of_the_grid_has_mirrored_views(scale: str) -> None:
    """Without them its rows would train the same."""
    for row in read_study("grid").rows:
        views = compose_config("pretrain", row.overrides[scale]).views
        assert all(0 < group.flip < 1 for group in views.groups)


def test_the_papers_numbers() -> None:
    """Tables 3, 4 and 7, typed again from the paper."""
    found = {
        name: [tuple(row.paper.values()) for row in read_study(name).rows] for name in ("table3", "table4", "table7")
    }
    assert found["table3"] == [(73.8, 56.0), (73.6, 57.7), (73.5, 58.9), (73.6, 60.3)]
    assert found["table4"] == [(71.1, 47.8), (70.4, 55.9), (67.5, 45.9), (66.6, 51.3)]
    assert found["table7"] == [(73.4, 59.0), (73.3, 58.2), (73.6, 60.3)]


def test_identity_follows_what_matters_alone() -> None:
    config = compose_config("pretrain", ["experiment=digits_vicregl"])
    same = compose_config(
        "pretrain", ["experiment=digits_vicregl", "name=x", "runs_dir=y", "method.local.matching=both"]
    )
    other = compose_config("pretrain", ["experiment=digits_vicregl", "seed=1"])
    assert run_identity(config) == run_identity(same) != run_identity(other)


def test_runs_that_studies_share_are_planned_once(tmp_path: Path) -> None:
    options = ReproduceConfig(out=str(tmp_path), seeds=[3, 4])
    studies = [read_study("table3"), read_study("figure2"), read_study("table7")]
    jobs = plan(studies, options, QUICK)
    assert len(jobs) == 2 * (4 + 3 + 2)  # L_s + L_d is alpha 0.75 and VIC
    shared = next(job for job in jobs if ("table3", "L_s + L_d") in job.rows and job.seed == 3)
    assert set(shared.rows) == {("table3", "L_s + L_d"), ("figure2", "alpha 0.75"), ("table7", "VIC")}
    assert shared.config.seed == shared.config.data.seed == 3
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)


def test_estimates_are_mean_and_standard_error() -> None:
    values = [31.0, 33.5, 32.1]
    estimate = Estimate.of([*values, math.nan])
    assert estimate.mean == pytest.approx(statistics.mean(values))
    assert estimate.error == pytest.approx(statistics.stdev(values) / math.sqrt(3))
    assert estimate.count == 3
    assert Estimate.of([5.0]).show() == "5.0"
    assert Estimate.of([]).show() == ""
    assert Estimate(3.0, 1.4, 3).firm
    assert not Estimate(3.0, 1.6, 3).firm
    assert not Estimate.of([3.0]).firm


def made_up(**failed: str) -> Summary:
    study = read_study("table3")
    rng = np.random.default_rng(0)
    seeds = [20.0, 40.0, 60.0]  # far apart: only pairing shows the rows' differences
    gains = {"none": 0.0, "L_d": 1.0, "L_s": 2.0, "L_s + L_d": 3.0}
    values = {
        row.name: {c: [s + gains[row.name] + rng.normal(0, 0.1) for s in seeds] for c in (*study.columns, "time")}
        for row in study.rows
    }
    return Summary(study, "mini", [0, 1, 2], values, failed)


def test_differences_are_paired_by_seed() -> None:
    summary = made_up()
    assert summary.mean("none", "segmentation").error > 5
    difference = summary.difference("none", "L_s + L_d", "segmentation")
    assert difference.mean == pytest.approx(3.0, abs=0.3)
    assert difference.error < 0.3
    assert difference.firm
    values = np.array([summary.values[name]["segmentation"] for name in ("none", "L_s + L_d")])
    assert difference.mean == pytest.approx(float((values[1] - values[0]).mean()))


def test_tables_hold_ours_and_the_papers_numbers() -> None:
    summary = made_up(**{"L_d, seed 1": "error: no room"})
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal(summary))
    for text in (console.export_text(), markdown(summary)):
        for words in ("60.3", "+4.3", "L_s + L_d less none", "±", "failed: L_d, seed 1: error: no room", "ConvNeXt-S"):
            assert words in text
    assert "experiment=digits_vicregl method.local.matching=none" in markdown(summary)
    rows = as_csv(summary).splitlines()
    assert rows[0] == "study,scale,setting,seed,classification,segmentation,time,run"
    assert len(rows) == 1 + 4 * 3
    plain = json.loads(json.dumps(summary.as_dict()))
    assert plain["rows"][0]["segmentation"]["seeds"] == summary.values["none"]["segmentation"]
    assert plain["differences"][2]["to"] == "L_s + L_d"


def fake_process(job: Job, options: ReproduceConfig) -> subprocess.Popen[bytes]:
    """Done at once, but for L_d, which fails."""
    job.folder.mkdir(parents=True, exist_ok=True)
    fails = job.rows[0][1] == "L_d"
    (job.folder / "reproduce.log").write_text("starting\nerror: no room\n" if fails else "fine\n")
    if not fails:
        write_json(job.folder / DONE, {"evaluated_by": job.evaluation_digest(options)})
    return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({2 if fails else 0})"])


def test_a_failed_run_is_named_and_the_rest_goes_on_and_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(job: Job, options: ReproduceConfig) -> subprocess.Popen[bytes]:
        started.append(job.title)
        return fake_process(job, options)

    monkeypatch.setattr(jobs_module, "_start", start)
    options = ReproduceConfig(out=str(tmp_path), seeds=[0, 1], parallel=3)
    jobs = plan([read_study("table3")], options, QUICK)
    console = Console(width=100, file=(log := io.StringIO()))
    failed = run_jobs(jobs, options, console)
    assert len(started) == 8
    told = [
        line.split("left, ")[1] for line in log.getvalue().splitlines() if line.startswith("runs: ") and "left" in line
    ]
    assert sorted(told) == sorted(job.title for job in jobs)  # each in a log too, however soon after another
    assert sorted(why.split(" (")[0] for why in failed.values()) == ["error: no room"] * 2
    started.clear()
    run_jobs(jobs, options, QUIET)
    assert started == ["L_d, seed 0", "L_d, seed 1"]
    assert not any(job.done(ReproduceConfig(out=str(tmp_path), evaluate=False)) for job in jobs)


@pytest.mark.command
def test_a_study_runs_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["reproduce", "table11", "seeds=[0]", "parallel=1", *QUICK]
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert "2 runs: 0 finished before, 2 to do" in first
    table = json.loads(Path("reproduced/table11-mini.json").read_text())
    for row in table["rows"]:
        assert row["time"]["mean"] > 0
        assert row["memory"]["mean"] > 0.1
        (folder,) = map(Path, row["runs"])
        assert (folder / "results" / "segmentation-digit_scenes.json").is_file()
        assert row["reports"] == [f"{folder}/report.html"]
    page = Path("reproduced/table11-mini.md").read_text()
    assert f"([report](runs/{folder.name}/report.html))" in page
    assert main(argv) == 0
    assert "2 finished before, 0 to do" in capsys.readouterr().out


def finished(job: Job, metrics: str, **results: float) -> None:
    """A run's folder as training and evaluation leave it, as far as tables read it."""
    (job.folder / "results").mkdir(parents=True)
    (job.folder / "config.yaml").write_text("method: {name: x}\ntrainer: {batch_size: 60}\n")
    (job.folder / "metrics.csv").write_text(metrics)
    write_json(job.folder / DONE, {"evaluated_by": "x"})
    write_json(job.folder / MEMORY, {"peak_gib": 1.5})
    for protocol, (metric, value) in {"linear": ("top1", results.get("top1")),
                                      "segmentation": ("miou", results.get("miou"))}.items():  # fmt: skip
        if value is not None:
            result = {"protocol": protocol, "data": "digit_scenes", "metrics": {metric: value, "other": 1.0}}
            write_json(job.folder / "results" / f"{protocol}-digit_scenes.json", result)


def test_time_and_memory_are_what_was_logged(tmp_path: Path) -> None:
    study = read_study("table11")
    first, second = plan([study], ReproduceConfig(out=str(tmp_path), seeds=[0]), QUICK)
    finished(first, "step,images_per_second\n1,50\n10,100\n100,400\n")
    finished(second, "step,images_per_second,peak_memory_gib\n1,50,11\n50,50,12\n")
    summary = summarise(study, [first, second], "mini", [0], {})
    assert summary.values["VICReg"] == {"time": [1.0], "memory": [1.5]}  # 100 steps of 60 images, 100 a second
    assert summary.values["VICRegL"] == {"time": [1.0], "memory": [12.0]}


def test_a_table_reads_linear_accuracy_and_miou(tmp_path: Path) -> None:
    study = read_study("table3")
    options = ReproduceConfig(out=str(tmp_path), seeds=[5, 6])
    jobs = plan([study], options, QUICK)
    for number, job in enumerate(jobs):
        finished(job, "step,loss\n1,2\n", top1=50.0 + number, miou=20.0 + number)
    summary = summarise(study, jobs, "mini", options.seeds, {})
    rows = [row.name for row in study.rows]
    assert [summary.values[name]["classification"] for name in rows] == [[50 + i, 54 + i] for i in range(4)]
    assert [summary.values[name]["segmentation"] for name in rows] == [[20 + i, 24 + i] for i in range(4)]
    assert summary.folders["none"] == [str(jobs[0].folder), str(jobs[4].folder)]
    assert f"[{jobs[4].folder.name}](runs/{jobs[4].folder.name}/config.yaml)" in markdown(summary)


def test_every_table_says_what_its_runs_cost(tmp_path: Path) -> None:
    study = read_study("grid")
    options = ReproduceConfig(out=str(tmp_path), seeds=[0, 1])
    jobs = plan([study], options, QUICK)
    for minutes, job in zip((1, 2, 3, 4), jobs):
        finished(job, f"step,images_per_second\n100,{100 / minutes}\n", top1=50.0, miou=20.0)
    summary = summarise(study, jobs, "mini", options.seeds, {})
    first, second = study.rows
    assert summary.values[first.name]["time"] == [1.0, 3.0]
    assert f"| {second.name} | 50.0 ± 0.0 | 20.0 ± 0.0 | 3.0 ± 1.0 |" in markdown(summary)
    assert summary.as_dict()["rows"][0]["time"]["mean"] == 2.0
    assert "time" not in summary.as_dict()["differences"][0]
    assert as_csv(summary).splitlines()[1].endswith(f",50.0000,20.0000,1.0000,{jobs[0].folder}")


def stop_a_study(number: signal.Signals, folder: Path) -> tuple[list[str], int, str]:
    """Send a signal to the command alone in the middle of a run: the command, its status and what it said."""
    argv = [sys.executable, "-m", "ssl_toolkit.cli", "reproduce", "table11", "seeds=[0]", "parallel=1", *QUICK]
    argv += [
        "trainer.epochs=12",
        "data.train_size=64",
        "trainer.checkpoint_every=4",
        "monitor.knn_every=null",
        "evaluate=false",
    ]
    process = subprocess.Popen(argv, cwd=folder, preexec_fn=heed_interrupts, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(folder.glob("reproduced/runs/*/checkpoints/last.ckpt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    return argv, process.returncode, errors


@pytest.mark.command
def test_a_study_that_is_stopped_goes_on(tmp_path: Path) -> None:
    """Ctrl+C in the middle of a run: it keeps a checkpoint, and the same command ends what it began."""
    argv, status, errors = stop_a_study(signal.SIGINT, tmp_path)
    assert status == 130
    assert "the same command goes on" in errors
    (begun,) = (tmp_path / "reproduced" / "runs").iterdir()
    assert not (begun / DONE).exists()
    assert subprocess.run(argv, cwd=tmp_path, timeout=500, check=False).returncode == 0
    assert len(list(tmp_path.glob(f"reproduced/runs/*/{DONE}"))) == 2
    assert "resuming" in (begun / "reproduce.log").read_text()


@pytest.mark.command
def test_a_study_that_is_killed_takes_its_runs_along(tmp_path: Path) -> None:
    """They would go on unseen, and the same command would start them a second time."""
    _, status, errors = stop_a_study(signal.SIGTERM, tmp_path)
    assert status == 143
    assert "the same command goes on" in errors
    (begun,) = (tmp_path / "reproduced" / "runs").iterdir()
    assert (begun / "reproduce.log").read_text().splitlines()[-1].startswith("stopped: ")


def test_a_run_that_failed_in_training_is_summed_up_as_missing(tmp_path: Path) -> None:
    options = ReproduceConfig(out=str(tmp_path), seeds=[0])
    study = read_study("table11")
    jobs = plan([study], options, QUICK)
    summary = summarise(study, jobs, "mini", [0], {jobs[0].folder: "error: no room"})
    assert summary.failed == {"VICReg, seed 0": "error: no room"}
    assert math.isnan(summary.mean("VICReg", "time").mean)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"scale": "huge"}, "scale must be mini or paper"),
        ({"seeds": []}, "seeds must be different numbers"),
        ({"seeds": [1, 1]}, "seeds must be different numbers"),
        ({"parallel": 0}, "parallel must be 1 or more"),
        ({"scale": "paper"}, "give imagenet=FOLDER"),
        ({"scale": "paper", "imagenet": "x"}, "give voc=FOLDER"),
    ],
)
def test_bad_options_are_refused(overrides: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(ReproduceConfig, overrides, "reproduce")


def test_unknown_studies_and_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "table12"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["reproduce", "scale=mini"]) == 2
    assert "name the study first" in capsys.readouterr().err
    assert main(["reproduce", "table3", "scale=paper", f"imagenet={tmp_path / 'x'}", "voc=y"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_the_yaml_holds_the_defaults() -> None:
    assert typed(ReproduceConfig, compose_config("reproduce"), "reproduce") == ReproduceConfig()
