"""Runs of several processes: the same numbers as one process, one run folder, one voice, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from ssl_toolkit import training
from ssl_toolkit.config import compose_config, override_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.processes.launch import launch
from ssl_toolkit.processes.world import agree, current_world, first_to_tell, from_first, in_any_process, join, leave
from ssl_toolkit.training.checkpoints import read_checkpoint
from ssl_toolkit.training.pretrain import RESUME
from tests.helpers import heed_interrupts, quick_overrides
from tests.training.killing import difference, metrics, runs_differ

PATIENCE = 600
"""Seconds; machines that test can be slow."""
LAYER_NORM = [
    "backbone=timm",
    "backbone.name=convnext_atto",  # BatchNorm's statistics would be those of each process
    "views.groups.0.size=64",
    "trainer.batch_size=32",
    "trainer.steps=5",
    *("optimizer=sgd", "~optimizer.trust_coefficient"),  # LARS divides by norms of gradients that rounding decides
    "optimizer.lr=0.4",
    "optimizer.warmup_epochs=0",
]
PARTS = ["trainer.accumulate=2", "trainer.clip_norm=1"]
PARTS += ["method.local.matching=location"]  # where steps are this small, rounding that decides one feature match shows
CASES = {
    "vicregl": ("vicregl", LAYER_NORM),
    "simclr_l": ("simclr_l", LAYER_NORM),
    "parts": ("vicregl", [*LAYER_NORM, *PARTS]),
    "whole": ("vicregl", ["trainer.epochs=10", "trainer.checkpoint_every=3", "trainer.workers=1"]),
}


def overrides(runs: Path, name: str) -> list[str]:
    method, more = CASES[name]
    return [
        *quick_overrides(runs, method),
        f"name={name}",
        "trainer.device=cpu",
        "trainer.log_every=1",
        "monitor.knn_every=null",
        *more,
    ]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _cases(runs: Path) -> None:
    for name in CASES:
        training.pretrain(compose_config("pretrain", overrides(runs, name)), Console(quiet=True))


def _resume(run: Path) -> None:
    training.resume(run, training.read_run_config(run), Console(quiet=True))


def _one_of(rank: int, count: int, port: int, action: Callable[[Path], None], path: Path) -> None:
    torch.set_num_threads(1)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, count, rank, count, port))), MASTER_ADDR="127.0.0.1")
    action(path)
    leave()


def in_two_processes(action: Callable[[Path], None], path: Path) -> None:
    """``action(path)`` in two processes as torchrun would start them, but faster."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.killing"])
    port = free_port()
    processes = [context.Process(target=_one_of, args=(rank, 2, port, action, path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs folder of all cases, trained by two processes."""
    runs = tmp_path_factory.mktemp("two")
    in_two_processes(_cases, runs)
    return runs


@pytest.mark.parametrize("name", ["vicregl", "simclr_l", "parts"])
def test_two_processes_equal_one(name: str, two: Path, tmp_path: Path) -> None:
    config = compose_config("pretrain", overrides(tmp_path, name))
    start = training.assemble(training.resolved(config)).method.state_dict()
    run = training.pretrain(config, Console(quiet=True))
    alone, both = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (run, two / name))
    assert alone["global_step"] == both["global_step"] == 5
    moved = apart = 0.0
    for key, value in alone["state_dict"].items():
        if key.startswith("method."):
            moved += float((value - start[key.removeprefix("method.")]).double().square().sum())
            apart += float((value - both["state_dict"][key]).double().square().sum())
    assert moved > 0.01
    assert apart < 1e-8 * moved  # measured: 8e-10 (vicregl), 4e-12 (simclr_l)
    rows = [metrics(path / "metrics.csv") for path in (run, two / name)]
    assert [row["step"] for row in rows[1]] == ["1", "2", "3", "4", "5"]  # written once
    for one, other in zip(*rows):
        assert float(other["loss"]) == pytest.approx(float(one["loss"]), rel=1e-4)


def test_two_processes_make_one_folder(two: Path) -> None:
    assert sorted(path.name for path in two.iterdir()) == sorted(CASES)
    found = {path.name for path in (two / "whole").iterdir()} - {".lock"}
    assert found == {
        "backbone.safetensors",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "examples",
        "metrics.csv",
    }
    assert training.read_run_config(two / "whole").trainer.devices == 2


def start(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    """``ssl-toolkit pretrain`` with two processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_toolkit.cli", "pretrain", *arguments, "trainer.devices=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
        **options,
    )


def wait_for_rows(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists() or len(path.read_text().splitlines()) <= count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def workers_of(run: Path) -> list[int]:
    """Processes that have the folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "ssl_toolkit.processes.worker" in line and f"\0{run}\0" in line:
            found.append(int(path.parent.name))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")


@pytest.mark.command
@needs_proc
def test_a_run_of_two_processes_is_interrupted_and_resumed(two: Path, tmp_path: Path) -> None:
    run = tmp_path / "whole"
    process = start(overrides(tmp_path, "whole"))
    wait_for_rows(run / "metrics.csv", 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    stopped = [line for line in err.splitlines() if line.startswith("stopped at step")]
    assert len(stopped) == 1
    assert f"continue with: ssl-toolkit pretrain run={run}" in stopped[0]
    assert "Traceback" not in out + err
    assert out.count("  run  ") == 1  # one of them prints
    assert workers_of(run) == []
    in_two_processes(_resume, run)
    assert runs_differ(two / "whole", run) is None


@pytest.mark.command
@needs_proc
def test_an_error_of_one_process_ends_all_with_one_line(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(32):
        Image.new("RGB", (48, 48), (8 * number, 0, 0)).save(images / f"{number:02}.png")
    (images / "05.png").write_bytes(b"no image")  # only the process that gets it sees that
    data = ["data=folder", override_of("data.root", images), "trainer.max_unreadable=0", "monitor.knn_every=null"]
    process = start(
        [
            override_of("runs_dir", tmp_path / "runs"),
            "experiment=digits_vicreg",
            "seed=1",
            *data,
            *("views=small", "trainer.batch_size=16", "trainer.device=cpu", "trainer.workers=0", "trainer.epochs=20"),
        ]
    )
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "05.png" in lines[0]
    assert "Traceback" not in out + err
    assert "ChildFailedError" not in out + err
    (run,) = (tmp_path / "runs").iterdir()
    assert "05.png" in (run / "unreadable-1.txt").read_text()  # it was not the one that prints
    assert workers_of(run) == []


@pytest.mark.command
@pytest.mark.parametrize("meeting", ["static", pytest.param("c10d", marks=pytest.mark.slow)])
def test_two_machines_of_torchrun(meeting: str, two: Path, tmp_path: Path) -> None:
    """Two agents on this machine, a process each; as many bits as of two processes on one machine."""
    port = free_port()
    ways = {
        "static": ["--master-addr=127.0.0.1", f"--master-port={port}"],
        "c10d": ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=1", "--local-addr=127.0.0.1"],
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *ways[meeting]]
    ranks = [[f"--node-rank={rank}"] if meeting == "static" else [] for rank in range(2)]
    agents = [
        subprocess.Popen(
            [*torchrun, *rank, "-m", "ssl_toolkit.cli", "pretrain", *overrides(tmp_path, "whole")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]
    printed = [agent.communicate(timeout=PATIENCE)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert sum("2 on 2 machines, 8 images a step each" in text for text in printed) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    same, run = two / "whole", tmp_path / "whole"
    assert metrics(run / "metrics.csv") == metrics(same / "metrics.csv")
    assert difference(*(load_file(path / "backbone.safetensors") for path in (same, run))) is None


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_a_killed_process_takes_the_others_along(victim: str, tmp_path: Path) -> None:
    run = tmp_path / "whole"
    process = start([*overrides(tmp_path, "whole"), "trainer.epochs=1000"])
    wait_for_rows(run / "metrics.csv", 2, process)
    os.kill(process.pid if victim == "launcher" else min(workers_of(run)), signal.SIGKILL)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == (-signal.SIGKILL if victim == "launcher" else 1)
    if victim == "worker":
        assert "was ended by SIGKILL; SIGKILL often means that memory ran out" in err
    end = time.monotonic() + 60
    while workers_of(run):
        assert time.monotonic() < end
        time.sleep(0.1)


def _in_a_step(rank: int, port: int, folder: Path) -> None:
    said = {
        "SLURM_STEP_ID": 0,
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank,
        "SLURM_NTASKS": 2,
        "SLURM_NTASKS_PER_NODE": 2,
    }
    os.environ.update({key: str(value) for key, value in said.items()})
    os.environ.update(SLURM_JOB_ID=str(port - 20_000), SLURM_JOB_NODELIST="127.0.0.1")
    world, cpu = current_world(), torch.device("cpu")
    join(world, cpu)
    join(world, cpu)

    def wrong() -> None:
        if rank == 1:
            raise UserError("not here")

    found = [from_first(lambda: f"of {rank}"), in_any_process(rank == 1, cpu), in_any_process(False, cpu)]
    with pytest.raises(UserError, match="not here"):
        agree(wrong)
    with pytest.raises(UserError, match="of the first"):
        from_first(lambda: (_ for _ in ()).throw(UserError("of the first" if rank == 0 else "other")))
    (folder / str(rank)).write_text(f"{found} {first_to_tell()}")
    dist.barrier()
    leave()


def test_tasks_of_srun_find_each_other_and_agree(tmp_path: Path) -> None:
    port = next(port for port in iter(free_port, None) if 20_000 < port < 60_000)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.killing"])
    processes = [context.Process(target=_in_a_step, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    told = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert sorted(told) == ["['of 0', True, False] False", "['of 0', True, False] True"]


@pytest.mark.command
def test_launch_raises_what_a_process_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a config that only the processes find wrong; signal handlers are put back, and nothing is left behind."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests run beside this one
    config = training.resolved(compose_config("pretrain", [*overrides(tmp_path, "whole"), "trainer.batch_size=15"]))
    with pytest.raises(UserError, match="15 images do not divide by 2 processes; take 16"):
        launch(2, RESUME, tmp_path, config, quiet=True)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not list(tmp_path.glob("ssl-toolkit-????????"))
