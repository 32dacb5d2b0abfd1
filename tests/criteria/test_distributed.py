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
from torch.nn.parallel import DistributedDataParallel

from ssl_toolkit.criteria import (
    ContrastiveCriterion,
    Matching,
    NonFiniteError,
    VICRegCriterion,
    matched_loss,
)
from ssl_toolkit.criteria.distributed import from_owners, gather_rows, share_out, to_owners
from ssl_toolkit.methods import METHODS, Method
from ssl_toolkit.views.batch import ViewBatch
from tests.helpers import TinyBackbone, random_batch

PER_PROCESS = 3
NARROW = {"widths": [8, 2]}  # fewer dimensions than the rows are worth: the D x D form
CASES: dict[str, dict[str, Any]] = {
    "vicreg": {"name": "vicreg", "expander": {"widths": [8, 8]}},
    "vicreg_narrow": {"name": "vicreg", "expander": NARROW, "preset": "paper"},
    "vicregl": {"name": "vicregl", "expander": {"widths": [8, 8]}, "projector": {"widths": [5, 5]}},
    "vicregl_wide": {
        "name": "vicregl",
        "expander": NARROW,
        "projector": {"widths": [5, 40]},
        "preset": "paper",
        "local": {"gamma": [5, 2], "feature_gamma": [0, 1], "max_distance": 0.8, "order": "distance"},
    },
    "vicregl_rules": {
        "name": "vicregl",
        "expander": NARROW,
        "projector": {"widths": [5, 5]},
        "local": {"statistics": "maps", "mutual": True, "feature_space": "features", "feature_max_distance": 2.0},
    },
    "vicregl_global": {"name": "vicregl", "expander": {"widths": [8, 8]}, "alpha": 1.0},
    "vicregl_local": {"name": "vicregl", "projector": {"widths": [5, 5]}, "alpha": 0.0},
    "simclr": {"name": "simclr", "projector": {"widths": [8, 8]}},
    "simclr_l": {
        "name": "simclr_l",
        "projector": {"widths": [8, 8]},
        "local_projector": {"widths": [5, 5]},
    },
    "simclr_l_masked": {
        "name": "simclr_l",
        "projector": {"widths": [8, 8]},
        "local_projector": {"widths": [5, 5]},
        "temperature": 0.02,
        "local": {"gamma": [1, 1], "max_distance": 0.8},
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


def start(rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)


def worker(rank: int, world: int, port: int, cases: list[str], folder: str) -> None:
    start(rank, world, port)
    results = {}
    for case in cases:
        method = make_method(case)
        replica = DistributedDataParallel(method)  # gone before backward, it would average nothing
        loss = replica(part(joined_batch(world), rank)).loss
        loss.backward()
        grads = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
        results[case] = {"loss": loss.detach(), "grads": grads}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def spawn(function: Any, world: int, *args: Any) -> None:
    mp.start_processes(function, (world, free_port(), *args), nprocs=world, start_method="fork")


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one_process(world: int, tmp_path: Path) -> None:
    spawn(worker, world, sorted(CASES), str(tmp_path))
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for case in CASES:
        loss, grads = gradients(make_method(case), joined_batch(world))
        for result in results:  # every process reports the loss of the joined batch
            assert result[case]["loss"].item() == pytest.approx(loss, rel=1e-10), case
        found = results[0][case]["grads"]
        assert found.keys() == grads.keys()
        for name, grad in grads.items():
            assert grad.abs().sum() > 0, name
            torch.testing.assert_close(found[name], grad, rtol=1e-8, atol=1e-10, msg=f"{case}: {name}: {{}}".format)


def uneven(rank: int, world: int, port: int, folder: str) -> None:
    start(rank, world, port)
    x = torch.randn(4 - rank, 6)
    maps = torch.randn(4 - rank, 5, 6)
    key = torch.zeros(4 - rank, 5, dtype=torch.int64)
    messages = []
    for call in (
        lambda: VICRegCriterion().views([x, x], 2),
        lambda: ContrastiveCriterion().views([x, x], 2),
        lambda: matched_loss(VICRegCriterion(), [maps, maps], [Matching("location", 0, 1, None, key, 1.0)]),
    ):
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
    broken = torch.full((4, 6), torch.nan if rank == 1 else 1.0)
    try:
        VICRegCriterion().views([broken, broken], 2)
    except NonFiniteError as error:
        messages.append(str(error))
    (Path(folder) / f"{rank}.txt").write_text("\n".join(messages))
    dist.destroy_process_group()


def test_bad_batches_stop_every_process(tmp_path: Path) -> None:
    """And none of them hangs in a collective."""
    spawn(uneven, 2, str(tmp_path))
    for rank in range(2):
        *uneven_batches, not_finite = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert len(uneven_batches) == 3
        for line in uneven_batches:
            assert "process 0 has 4 and process 1 has 3: drop the last, incomplete batch" in line
        assert ("another process" in not_finite) == (rank == 0)
        assert ("24 values that are not finite" in not_finite) == (rank == 1)


def shapes_and_strides(rank: int, world: int, port: int, folder: str) -> None:
    start(rank, world, port)
    messages = []
    z = [torch.randn(4, 6 + rank) for _ in range(2)]
    maps = [torch.randn(4, 5 + rank, 6) for _ in range(2)]
    key = torch.zeros(4, 5 + rank, dtype=torch.int64)
    for call in (
        lambda: VICRegCriterion().views(z, 2),
        lambda: matched_loss(VICRegCriterion(), maps, [Matching("location", 0, 1, None, key, 1.0)]),
    ):
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
    everything = torch.arange(24.0).view(3, 8)  # (D, W * B): columns are rows of the transposed
    joined = gather_rows(everything.T[rank * 4 : rank * 4 + 4])
    messages.append(str(torch.equal(joined, everything.T)))
    (Path(folder) / f"{rank}.txt").write_text("\n".join(messages))
    dist.destroy_process_group()


def test_other_shapes_stop_every_process_and_strides_do_not_matter(tmp_path: Path) -> None:
    spawn(shapes_and_strides, 2, str(tmp_path))
    for rank in range(2):
        views, maps, gathered = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert "embeddings: shapes differ between processes: [4, 2, 6] in process 0, [4, 2, 7] in 1" in views
        assert "maps: shapes differ between processes" in maps
        assert gathered == "True"


def one_image(rank: int, world: int, port: int, folder: str) -> None:
    start(rank, world, port)
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(world, 6, dtype=torch.float64, generator=generator)[rank : rank + 1] for _ in range(2)]
    key = torch.arange(3).expand(1, 3)
    values = []
    for criterion in (VICRegCriterion(), ContrastiveCriterion()):
        values.append(criterion.views(z, 2).total.item())
        maps = [t.view(1, 3, 2) for t in z]
        values.append(matched_loss(criterion, maps, [Matching("location", 0, 1, None, key, 1.0)]).total.item())
    (Path(folder) / f"{rank}.txt").write_text(" ".join(map(str, values)))
    dist.destroy_process_group()


def test_one_image_a_process_is_enough(tmp_path: Path) -> None:
    spawn(one_image, 2, str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(2, 6, dtype=torch.float64, generator=generator) for _ in range(2)]
    expected = []
    for criterion in (VICRegCriterion(), ContrastiveCriterion()):
        matching = Matching("location", 0, 1, None, torch.arange(3).expand(2, 3), 1.0)
        expected.append(criterion.views(z, 2).total.item())
        expected.append(matched_loss(criterion, [t.view(2, 3, 2) for t in z], [matching]).total.item())
    for rank in range(2):
        assert [float(v) for v in (tmp_path / f"{rank}.txt").read_text().split()] == pytest.approx(expected)


def slots(rank: int, world: int, port: int, folder: str) -> None:
    start(rank, world, port)
    everything = torch.arange(world * 2 * 5).view(5, world * 2).float()  # 5 groups of 2 rows a process
    sizes = share_out(5, start=1)
    owned = to_owners(everything[:, rank * 2 : rank * 2 + 2], sizes)
    first = sum(sizes[:rank])
    assert torch.equal(owned, everything[first : first + sizes[rank]])
    assert torch.equal(from_owners(owned, sizes), everything[:, rank * 2 : rank * 2 + 2])
    few = share_out(1)  # fewer groups than processes: some own none
    assert torch.equal(from_owners(to_owners(everything[:1, :2], few), few), everything[:1, :2])
    (Path(folder) / f"{rank}.txt").write_text(str(sizes))
    dist.destroy_process_group()


def test_slots_are_shared_out_and_come_back(tmp_path: Path) -> None:
    spawn(slots, 3, str(tmp_path))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(3)] == ["[1, 2, 2]"] * 3


def test_one_process_joins_nothing() -> None:
    x = torch.randn(4, 3)
    assert gather_rows(x) is x
    assert to_owners(x, share_out(4)) is x
    assert from_owners(x, [4]) is x
