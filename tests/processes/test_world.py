"""Who a process is among others, from what torchrun and SLURM say; and which images it gets."""

from __future__ import annotations

import pytest
import torch

from ssl_toolkit.errors import UserError
from ssl_toolkit.processes.world import (
    World,
    agree,
    current_world,
    first_to_tell,
    from_first,
    in_any_process,
    meeting_point,
    planned_world,
    process_device,
    told_world,
)
from ssl_toolkit.training.options import TrainerConfig
from ssl_toolkit.training.parts import check_batch
from ssl_toolkit.views.loader import EpochBatches

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
}
CPU = torch.device("cpu")


def test_torchrun_is_believed_before_slurm() -> None:
    assert told_world({**SRUN, **TORCHRUN, "SLURM_PROCID": "7"}) == World(5, 8, 1, 4)
    assert World(5, 8, 1, 4).nodes == 2
    assert told_world({}) is None
    assert current_world({}) == World()


@pytest.mark.parametrize(
    "said",
    [
        {"SLURM_NTASKS_PER_NODE": "4"},
        {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
        {"SLURM_STEP_TASKS_PER_NODE": "4,4", "SLURM_NTASKS_PER_NODE": "8"},  # of the step, not of the allocation
        {"SLURM_STEP_NUM_NODES": "2"},
        {"SLURM_NNODES": "2"},
    ],
)
def test_srun_says_it_in_several_ways(said: dict[str, str]) -> None:
    assert told_world({**SRUN, **said}) == World(5, 8, 1, 4)


def test_the_script_of_a_job_is_not_one_of_its_tasks() -> None:
    """sbatch sets a rank and a number of tasks for its script too: waiting for the others would be for ever."""
    script = {key: value for key, value in SRUN.items() if key != "SLURM_STEP_ID"}
    assert told_world({**script, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**TORCHRUN, "RANK": "8"}, r"torchrun tells of processes that cannot be \(RANK=8, WORLD_SIZE=8"),
        ({**TORCHRUN, "WORLD_SIZE": "9"}, "machines must have as many each"),
        ({**TORCHRUN, "RANK": "x"}, "RANK=x"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "5,3"}, "machines of this SLURM step have 5,3 tasks"),
        ({**SRUN, "SLURM_NTASKS_PER_NODE": "3"}, "srun tells of processes that cannot be"),
    ],
)
def test_contradictions_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        told_world(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[03-04,9]", "gpu03"),
        ("a1,b[2-3]", "a1"),
        ("rack[1-2]-n[5,7],x", "rack1-n5"),
        ("gpu[2,4]-ib", "gpu2-ib"),
    ],
)
def test_processes_of_a_step_meet_at_its_first_machine(nodes: str, first: str) -> None:
    host, port = meeting_point({**SRUN, "SLURM_JOB_NODELIST": nodes})
    assert (host, port) == (first, 20_000 + 123_456 % 40_000)
    assert meeting_point({**SRUN, "SLURM_STEP_ID": "1"})[1] != port  # two steps of a job at once
    assert meeting_point({**SRUN, "MASTER_ADDR": "there", "MASTER_PORT": "1234"}) == ("there", 1234)


def test_planned_processes() -> None:
    assert planned_world(3, CPU, {}) == World(0, 3, 0, 3)
    assert planned_world(0, CPU, {}) == World()
    assert planned_world(3, CPU, TORCHRUN) == World(5, 8, 1, 4)  # they are there already
    with pytest.raises(UserError, match="2 processes cannot share an Apple GPU"):
        planned_world(2, torch.device("mps"), {})


def test_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    cuda = torch.device("cuda")
    assert planned_world(0, cuda, {}) == World(0, 8, 0, 8)
    assert process_device(cuda, World(13, 16, 5, 8)) == torch.device("cuda", 5)
    with pytest.raises(UserError, match="16 processes on a machine with 8 GPUs"):
        process_device(cuda, World(0, 16, 0, 16))
    with pytest.raises(UserError, match="names one GPU for 2 processes"):
        process_device(torch.device("cuda", 1), World(0, 2, 0, 2))


@pytest.mark.parametrize(
    ("batch", "processes", "parts", "message"),
    [
        (15, 2, 1, "15 images do not divide by 2 processes; take 16"),
        (100, 8, 1, "take 96"),
        (30, 2, 4, r"2 processes times 4 parts \(trainer.accumulate\); take 32"),
        (8, 8, 1, "leave 1 to a pass through the network.* take at least 16"),
    ],
)
def test_a_batch_that_cannot_be_shared(batch: int, processes: int, parts: int, message: str) -> None:
    world = World(size=processes, local_size=processes)
    with pytest.raises(UserError, match=message):
        check_batch(TrainerConfig(batch_size=batch, accumulate=parts), world)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_step_has_the_same_images_whatever_the_number_of_processes(world: int) -> None:
    alone = list(EpochBatches(50, 16, seed=3))
    shares = [list(EpochBatches(50, 16 // world, seed=3, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(alone):
        assert [key for share in shares for key in share[step]] == batch


def test_one_process_agrees_with_itself() -> None:
    def wrong() -> None:
        raise UserError("no")

    assert agree(lambda: 3) == from_first(lambda: 3) == 3
    assert in_any_process(True, CPU) is True
    assert in_any_process(False, CPU) is False
    assert first_to_tell()
    assert first_to_tell()
    with pytest.raises(UserError, match="no"):
        agree(wrong)
