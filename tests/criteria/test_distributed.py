"""Two and three gloo processes with averaged gradients equal one process on the joined batch, for all four methods."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from ssl_toolkit.criteria import gather_batch
from ssl_toolkit.methods import METHODS, Method
from ssl_toolkit.views.batch import ViewBatch
from tests.helpers import TinyBackbone, random_batch

PER_PROCESS = 3
CASES: dict[str, dict[str, Any]] = {
    "vicreg": {"name": "vicreg", "expander": {"widths": [8, 8]}},
    "vicregl": {"name": "vicregl", "expander": {"widths": [8, 8]}, "projector": {"widths": [5, 5]}},
    "simclr": {"name": "simclr", "projector": {"widths": [8, 8]}},
    "simclr_l": {
        "name": "simclr_l",
        "projector": {"widths": [8, 8]},
        "local_projector": {"widths": [5, 5]},
    },
}


def make_method(case: str) -> Method:
    """In float64 and without BatchNorm, whose statistics are per process unless synchronised."""
    torch.manual_seed(0)
    backbone = TinyBackbone(norm="layer")
    backbone.net = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.Tanh())
    return METHODS.build(CASES[case], backbone=backbone).double()


def part(batch: ViewBatch, rank: int) -> ViewBatch:
    return batch.map(lambda t: t[rank * PER_PROCESS : (rank + 1) * PER_PROCESS])


def gradients(method: Method, batch: ViewBatch) -> tuple[float, dict[str, torch.Tensor]]:
    loss = method(batch).loss
    loss.backward()
    return loss.item(), {k: p.grad for k, p in method.named_parameters() if p.grad is not None}


def joined_batch(world: int) -> ViewBatch:
    return random_batch(batch=PER_PROCESS * world, sizes=(32, 32, 24), dtype=torch.float64)


def worker(rank: int, world: int, port: int, case: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    loss, grads = gradients(make_method(case), part(joined_batch(world), rank))
    for grad in grads.values():  # what DistributedDataParallel does
        dist.all_reduce(grad)
        grad /= world
    mean_loss = torch.tensor(loss, dtype=torch.float64)
    dist.all_reduce(mean_loss)
    if rank == 0:
        torch.save({"loss": mean_loss / world, "grads": grads}, Path(folder) / "result.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize(("case", "world"), [*((case, 2) for case in sorted(CASES)), ("vicregl", 3), ("simclr_l", 3)])
def test_processes_equal_one_process(case: str, world: int, tmp_path: Path) -> None:
    mp.start_processes(worker, (world, free_port(), case, str(tmp_path)), nprocs=world, start_method="fork")
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    loss, grads = gradients(make_method(case), joined_batch(world))
    assert result["loss"].item() == pytest.approx(loss, rel=1e-10)
    assert result["grads"].keys() == grads.keys()
    for name, grad in grads.items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(result["grads"][name], grad, rtol=1e-8, atol=1e-10, msg=name)


def test_one_process_gathers_nothing() -> None:
    x = torch.randn(4, 3)
    assert gather_batch(x) is x
