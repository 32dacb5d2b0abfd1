"""Training on live images: batches by step, resumed to the bit, many processes as one, stopped between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_toolkit.errors import Terminated, UserError
from ssl_toolkit.evaluation import live
from ssl_toolkit.evaluation.live import Diverged, Key, Plan, Samples, cosine, train
from ssl_toolkit.evaluation.unfinished import Unfinished
from tests.criteria.test_distributed import spawn, start

CPU = torch.device("cpu")
NOWHERE = Unfinished(None, "nothing", {})


class Points(Samples[tuple[Tensor, Tensor]]):
    """Noisy points, the noise of each drawn from its key; image ``bad`` cannot be read."""

    def __init__(self, length: int = 23, bad: int | None = None) -> None:
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def batch(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        if any(index == self.bad for _, index in keys):
            raise UserError(f"image {self.bad} cannot be read")
        rows = [np.random.default_rng([number, index]).normal(size=3) + index % 4 for number, index in keys]
        return torch.tensor(np.array(rows), dtype=torch.float32), torch.tensor([index % 4 for _, index in keys])


def network(batchnorm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    norm: nn.Module = nn.BatchNorm1d(8) if batchnorm else nn.Identity()
    return nn.Sequential(nn.Linear(3, 8), norm, nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 4))


class Task:
    """One training, on however many processes there are."""

    def __init__(self, plan: Plan, samples: Points | None = None, **given: Any) -> None:
        self.plan, self.samples = plan, samples or Points()
        self.net = given.pop("net", None) or network()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=given.pop("lr", 0.1), momentum=0.9)
        self.given = {"device": CPU, "title": "a task", "unfinished": NOWHERE, **given}
        self.seen: list[list[int]] = []
        self.before: Callable[[int], None] = lambda step: None

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.before(len(self.seen))
        self.seen.append(batch[1].tolist())
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="sum") / self.plan.images(
            len(self.samples)
        )

    def run(self) -> dict[str, Tensor]:
        train(self.net, self.optimizer, cosine(self.plan.steps), self.samples, self.loss, self.plan, **self.given)
        return {name: value.clone() for name, value in self.net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_batches_depend_on_the_step_alone() -> None:
    plan = Plan(steps=9, batch_size=7, seed=3)
    assert plan.steps_per_pass(23) == 3
    passes = [[plan.keys(step, 23) for step in range(number * 3, number * 3 + 3)] for number in range(3)]
    orders = []
    for number, batches in enumerate(passes):
        keys = [key for batch in batches for key in batch]
        assert {n for n, _ in keys} == {number}
        assert len({index for _, index in keys}) == 21
        orders.append([index for _, index in keys])
    assert orders[0] != orders[1] != orders[2]
    assert Plan(9, 7, seed=4).keys(0, 23) != plan.keys(0, 23)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_the_batch_of_one(world: int) -> None:
    plan = Plan(steps=9, batch_size=7)
    for step in range(9):
        parts = [plan.keys(step, 23, rank, world) for rank in range(world)]
        assert [key for part in parts for key in part] == plan.keys(step, 23)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_is_at_most_a_pass() -> None:
    plan = Plan(steps=2, batch_size=64)
    assert plan.images(5) == 5
    assert plan.steps_per_pass(5) == 1
    assert sorted(index for _, index in plan.keys(1, 5)) == list(range(5))


def test_training_is_a_plain_loop() -> None:
    plan = Plan(steps=8, batch_size=7, seed=1)
    got = Task(plan).run()
    net, samples = network(), Points()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for step in range(8):
        x, y = samples.batch(plan.keys(step, 23))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        schedule.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_cosine_with_warm_up() -> None:
    factor = cosine(10, warmup=4)
    assert [factor(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4) == 1
    assert factor(7) == pytest.approx(0.5)
    assert factor(10) == pytest.approx(0)
    assert cosine(4)(2) == pytest.approx(0.5)


@pytest.mark.parametrize("at", [0, 1, 4, 7])
def test_a_stopped_training_goes_on_to_the_same_bits(at: int, tmp_path: Path) -> None:
    plan = Plan(steps=8, batch_size=7)
    whole = Task(plan, net=dropping())
    expected = whole.run()
    unfinished = Unfinished(tmp_path / "state", "work", {"a": 1})
    first = Task(plan, net=dropping(), unfinished=unfinished)
    first.before = lambda step: signal.raise_signal(signal.SIGINT) if step == at else None
    place = "its end" if at == 7 else f"step {at + 1} of 8"
    with pytest.raises(KeyboardInterrupt, match=f"^stopped a task at {place}; the same command continues it$"):
        first.run()
    assert len(first.seen) == at + 1
    second = Task(plan, net=dropping(), unfinished=unfinished)
    second.net[0].weight.data.fill_(7)  # what was kept counts, not what the network had
    assert same(second.run(), expected)
    assert first.seen + second.seen == whole.seen
    third = Task(plan, net=dropping(), unfinished=unfinished)
    assert same(third.run(), expected)
    assert third.seen == []  # it is done
    unfinished.clear()
    unfinished.clear()
    assert list(tmp_path.iterdir()) == []


def dropping() -> nn.Module:
    net = network(batchnorm=True)
    net[3].p = 0.5
    return net


def test_randomness_outside_is_untouched_and_inside_is_by_step() -> None:
    plan = Plan(steps=3, batch_size=7)
    task = Task(plan, net=dropping())
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    a = task.run()
    assert torch.equal(torch.rand(2), expected)
    assert same(a, Task(plan, net=dropping()).run())
    assert not same(a, Task(Plan(steps=3, batch_size=7, seed=1), net=dropping()).run())


def test_a_state_of_other_work_is_not_taken_up(tmp_path: Path) -> None:
    plan = Plan(steps=4, batch_size=7)
    Task(plan, unfinished=Unfinished(tmp_path, "work", {"lr": 1})).run()
    other = Task(plan, unfinished=Unfinished(tmp_path, "work", {"lr": 2}))
    other.run()
    assert len(other.seen) == 4
    assert len(list(tmp_path.iterdir())) == 2
    more = Task(plan, unfinished=Unfinished(tmp_path, "work", {"lr": 1}).of({"images": 3}))
    more.run()
    assert len(more.seen) == 4


@pytest.mark.parametrize("content", [b"", b"no state", "list", "keys", "network"])
def test_a_damaged_state_is_said_and_left(content: bytes | str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    unfinished = Unfinished(tmp_path, "work", {})
    assert unfinished.path is not None
    states: dict[Any, Any] = {"list": [1], "keys": {"step": 3}}
    states["network"] = {"step": 3, "network": network(batchnorm=True).state_dict(), "optimizer": {}}
    if isinstance(content, bytes):
        unfinished.path.write_bytes(content)
    else:
        torch.save(states[content], unfinished.path)
    task = Task(Plan(steps=2, batch_size=7), unfinished=unfinished)
    expected = Task(Plan(steps=2, batch_size=7)).run()
    assert same(task.run(), expected)
    assert len(task.seen) == 2
    assert f"{unfinished.path} is damaged; starting work anew" in capsys.readouterr().out.replace("\n", "")


def test_a_full_disk_costs_the_state_and_not_the_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    Task(Plan(steps=2, batch_size=7), unfinished=Unfinished(tmp_path / "file" / "folder", "work", {})).run()
    assert "work cannot be resumed: cannot write" in capsys.readouterr().out


def test_the_state_is_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SAVE_SECONDS", 0.0)
    unfinished = Unfinished(tmp_path, "work", {})

    def die(step: int) -> None:
        if step == 3:
            raise MemoryError

    task = Task(Plan(steps=8, batch_size=7), unfinished=unfinished)
    task.before = die
    with pytest.raises(MemoryError):
        task.run()
    again = Task(Plan(steps=8, batch_size=7), unfinished=unfinished)
    assert same(again.run(), Task(Plan(steps=8, batch_size=7)).run())
    assert len(again.seen) == 5


def test_sigterm_says_so_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    task = Task(Plan(steps=8, batch_size=7))
    task.before = lambda step: signal.raise_signal(signal.SIGTERM) if step == 2 else None
    with pytest.raises(Terminated, match=r"^stopped a task at step 3 of 8$"):
        task.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_is_not_held(tmp_path: Path) -> None:
    task = Task(Plan(steps=8, batch_size=7), unfinished=Unfinished(tmp_path, "work", {}))

    def twice(step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    task.before = twice
    with pytest.raises(KeyboardInterrupt) as caught:
        task.run()
    assert str(caught.value) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_one_line(workers: int) -> None:
    task = Task(Plan(steps=6, batch_size=7, workers=workers), Points(bad=4))
    with pytest.raises(UserError, match=r"^image 4 cannot be read$"):
        task.run()


def test_workers_give_the_same() -> None:
    plans = [Plan(steps=7, batch_size=7, workers=workers) for workers in (0, 2)]
    a, b = (Task(plan).run() for plan in plans)
    assert same(a, b)


@pytest.mark.parametrize("steps", [3, 60])
def test_a_loss_that_is_not_finite_stops(steps: int) -> None:
    task = Task(Plan(steps=steps, batch_size=7), lr=1e38)
    with pytest.raises(Diverged, match=r"a task: the loss is nan at step .*: lower the learning rate"):
        task.run()
    loose = Task(Plan(steps=steps, batch_size=7), lr=1e38, finite=False)
    loose.run()
    assert len(loose.seen) == steps


def distributed_task(folder: str, **given: Any) -> Task:
    unfinished = Unfinished(Path(folder), "work", {})
    return Task(Plan(steps=6, batch_size=7), unfinished=unfinished, **given)


def worker(rank: int, world: int, port: int, folder: str) -> None:
    start(rank, world, port)
    task = distributed_task(folder)
    if rank == 1:  # the signal reaches one of them
        task.before = lambda step: signal.raise_signal(signal.SIGINT) if step == 2 else None
    try:
        task.run()
        raise AssertionError
    except KeyboardInterrupt as error:
        stopped = str(error)
    task = distributed_task(folder)
    task.net[0].weight.data.fill_(rank)
    result = task.run()
    errors = []
    for samples in (Points(bad=4), Points(length=1)):
        try:
            Task(Plan(steps=6, batch_size=7), samples).run()
        except UserError as error:
            errors.append(str(error))
    normed = Task(Plan(steps=6, batch_size=8), net=network(batchnorm=True)).run()
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(rank)
    norm.running_var.fill_(2 * rank)
    live.average_statistics(norm)
    statistics = norm.state_dict()
    kept = {"result": result, "seen": len(task.seen), "normed": normed, "statistics": statistics}
    torch.save(kept, Path(folder) / f"rank{rank}")
    (Path(folder) / f"{rank}.txt").write_text("\n".join([stopped, *errors]))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_many_processes_are_one(world: int, tmp_path: Path) -> None:
    """Stopped by a signal to one of them, resumed, an image that one of them cannot read."""
    spawn(worker, world, str(tmp_path))
    expected = Task(Plan(steps=6, batch_size=7)).run()
    kept = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(world)]
    for rank, state in enumerate(kept):
        assert state["seen"] == 3
        for name, value in expected.items():
            torch.testing.assert_close(state["result"][name], value, rtol=1e-5, atol=1e-6)
        assert same(state["result"], kept[0]["result"])
        assert same(state["normed"], kept[0]["normed"])  # statistics of BatchNorm too: their means over the processes
        assert state["statistics"]["running_mean"].tolist() == [(world - 1) / 2] * 2
        assert state["statistics"]["running_var"].tolist() == [world - 1] * 2
        lines = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert lines == [
            "stopped a task at step 3 of 6; the same command continues it",
            "image 4 cannot be read",
            f"a batch of 1 is too small for {world} processes",
        ]


def test_signals_outside_the_main_thread_are_left_alone() -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(len(Task(Plan(steps=2, batch_size=7)).run())))
    thread.start()
    thread.join(60)
    assert done == [4]
