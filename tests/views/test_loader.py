"""Order of batches, resuming, workers, and images that cannot be read: the same for every engine."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_toolkit.errors import UserError
from ssl_toolkit.views import EpochBatches, ViewBatch, ViewDataset, ViewGroup, ViewLoader, view_loader
from ssl_toolkit.views.reading import Unreadable, read_or_replace
from tests.helpers import needs_dali
from tests.views.helpers import Photos, Ramps, views

ENGINES = ["torch", pytest.param("dali", marks=needs_dali)]
CPU = torch.device("cpu")
Load = Callable[..., ViewLoader]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(engine: str) -> Iterator[Load]:
    """Makes loaders of one engine and closes them all."""
    made: list[ViewLoader] = []

    def loader_of(images: Any = None, **options: Any) -> ViewLoader:
        config = options.pop("config", views(ViewGroup(count=2, size=16)))
        options = {"engine": engine, "seed": 0, "batch_size": 4, "workers": 0, "device": CPU, **options}
        made.append(view_loader(images=Ramps() if images is None else images, config=config, **options))
        return made[-1]

    yield loader_of
    for loader in made:
        loader.close()


def indices(batches: Iterator[ViewBatch] | ViewLoader) -> list[int]:
    return [i for batch in batches for i in batch.index.tolist()]


def test_epochs_are_complete_disjoint_and_reshuffled() -> None:
    processes = [EpochBatches(23, 4, seed=5, rank=r, world=2) for r in range(2)]
    assert [len(p) for p in processes] == [2, 2]
    orders = []
    for step in (0, 2, 4):
        seen = []
        for process in processes:
            process.step = step
            batches = list(process)
            assert [len(b) for b in batches] == [4, 4]
            assert {epoch for b in batches for epoch, _ in b} == {step // 2}
            seen += [i for b in batches for _, i in b]
        assert len(set(seen)) == 16
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]


def test_an_epoch_can_start_in_the_middle() -> None:
    whole, rest = EpochBatches(40, 4, seed=0), EpochBatches(40, 4, seed=0)
    whole.step, rest.step = 10, 13
    assert list(whole)[3:] == list(rest)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_same_batches_with_any_workers(load: Load, engine: str, workers: int) -> None:
    config = views(
        ViewGroup(count=2, size=16, interpolation="bilinear", jitter=0.0, gray=0.0, blur=[0.0], solarize=[0.0])
    )
    loader = load(config=config, workers=workers, position=lambda: 6)
    batches = list(loader)
    assert len(loader) == 5
    assert len(batches) == 4
    direct = EpochBatches(20, 4, seed=0)
    direct.step = 6
    for batch, keys in zip(batches, direct):
        expected = ViewDataset(Ramps(), config, seed=0).__getitems__(keys)
        assert isinstance(expected, ViewBatch)
        assert torch.equal(batch.index, expected.index)
        assert batch.label is not None
        assert batch.label.tolist() == [i % 2 for i in batch.index.tolist()]
        assert torch.equal(batch.image_size, expected.image_size)
        for ours, theirs in zip(batch.views, expected.views):
            assert torch.equal(ours.box, theirs.box)
            assert torch.equal(ours.flip, theirs.flip)
            assert (ours.image.int() - theirs.image.int()).abs().max() <= (0 if engine == "torch" else 1)


def test_every_epoch_is_complete_and_reshuffled(load: Load) -> None:
    step = 0
    loader = load(position=lambda: step, workers=1)
    orders = []
    for _ in range(3):
        orders.append(indices(loader))
        step += len(loader)
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0] != orders[1] != orders[2]


def test_taking_no_more_than_an_epoch_has_leaves_none_out(load: Load) -> None:
    # Lightning counts batches, and never asks for the one after the last.
    step = 0
    loader = load(position=lambda: step)
    for _ in range(3):
        assert sorted(indices(itertools.islice(loader, len(loader)))) == list(range(20))
        step += len(loader)


def test_ranks_get_equal_batches_of_disjoint_images(load: Load) -> None:
    ranks = [indices(load(rank=rank, world=2, batch_size=3)) for rank in range(2)]
    assert [len(seen) for seen in ranks] == [9, 9]
    assert len(set(ranks[0] + ranks[1])) == 18


def test_a_stopped_epoch_goes_on_with_the_same_views(load: Load) -> None:
    step = 0
    images = Photos(12)
    config = views(ViewGroup(count=2, size=24), ViewGroup(count=1, size=16, large=False))
    loader = load(images, config=config, position=lambda: step, batch_size=2)
    whole = list(loader)
    step = 4
    rest = list(load(images, config=config, position=lambda: step, batch_size=2))
    # the same loader, left in the middle of an epoch, begins where training stands
    next(iter(loader))
    again = list(loader)
    for resumed in (rest, again):
        assert len(resumed) == 2
        for a, b in zip(whole[4:], resumed):
            assert torch.equal(a.index, b.index)
            assert all(torch.equal(x.image, y.image) for x, y in zip(a.views, b.views))


def test_closing_stops_the_workers_at_once(load: Load, engine: str) -> None:
    loader = load(batch_size=2, workers=2)
    before = set(multiprocessing.active_children())
    batches = iter(loader)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == (2 if engine == "torch" else 1)
    loader.close()
    assert not set(multiprocessing.active_children()) - before
    with pytest.raises(StopIteration):
        next(batches)
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(loader))


class Failing(Ramps):
    """Read by a library that fails."""

    def image(self, index: int) -> np.ndarray:
        raise RuntimeError("the disk is on fire")


def test_closing_stops_the_workers_of_an_epoch_that_failed(load: Load) -> None:
    loader = load(Failing(), workers=1)
    before = set(multiprocessing.active_children())
    with pytest.raises(RuntimeError, match="the disk is on fire") as error:
        next(iter(loader))
    loader.close()
    assert error.tb is not None  # which holds on to the workers
    assert not set(multiprocessing.active_children()) - before


class Damaged(Photos):
    """Photos of which one is no image, one is cut short, and one has a broken table in its header."""

    def __init__(self) -> None:
        super().__init__(40)
        whole = self.files[0]
        self.files[3] = np.frombuffer(b"<html>not an image</html>", np.uint8).copy()
        self.files[5] = whole[: len(whole) // 2].copy()
        tables = whole.tobytes().index(b"\xff\xc4")
        self.files[7] = whole.copy()
        self.files[7][tables + 5 : tables + 21] = 255  # more Huffman codes than there can be
        self.bad = {3, 5, 7}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_unreadable_images_are_replaced_counted_and_named(load: Load, workers: int) -> None:
    lines: list[str] = []
    images = Damaged()
    loader = load(images, workers=workers, max_unreadable=0.1, report=lines.append)
    batches = list(loader)
    seen = indices(batches)  # type: ignore[arg-type]
    assert len(seen) == 40
    assert not set(seen) & images.bad
    assert len(lines) == 3
    assert {line.split("(")[0].strip() for line in lines} == {f"cannot decode photo {i}" for i in images.bad}
    # the replacement has views of its own, not those of its own turn
    boxes = [
        (i, *view.box[row].tolist()) for b in batches for row, i in enumerate(b.index.tolist()) for view in b.views
    ]
    assert len(set(boxes)) == len(boxes)
    assert seen == indices(load(images, engine="torch", max_unreadable=0.1))


def test_more_unreadable_images_than_allowed_stop_the_run_with_their_names(load: Load) -> None:
    loader = load(Damaged(), max_unreadable=0.05)
    with pytest.raises(
        UserError, match=r"3 of 40 images cannot be read, more than trainer\.max_unreadable=0\.05"
    ) as error:
        list(loader)
    assert all(f"photo {i}" in str(error.value) for i in (3, 5, 7))
    with pytest.raises(UserError, match=r"cannot decode photo \d .*skipped with trainer\.max_unreadable"):
        list(load(Damaged(), max_unreadable=0.0))


class Gone(Ramps):
    """Files that were moved."""

    def image(self, index: int) -> np.ndarray:
        raise UserError("cannot read photos/x.jpg: No such file")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_that_is_not_there_stops_at_once(load: Load, workers: int) -> None:
    loader = load(Gone(), workers=workers, max_unreadable=1.0)
    with pytest.raises(UserError, match=r"20 images drawn in a row cannot .*cannot read photos/x\.jpg"):
        next(iter(loader))


def test_a_replacement_that_cannot_be_read_is_replaced_too() -> None:
    def read(index: int) -> int:
        if index % 2:
            raise UserError(f"cannot decode {index}")
        return index

    taken = set()
    for epoch in range(20):
        unreadable: list[str] = []
        value, index = read_or_replace(read, (epoch, 7), 0, 10, unreadable)
        assert value == index
        assert index % 2 == 0
        assert unreadable[0] == "cannot decode 7"
        assert read_or_replace(read, (epoch, 7), 0, 10, []) == (value, index)
        taken.add(index)
    assert len(taken) > 2  # another one in another epoch


def test_each_unreadable_image_counts_once() -> None:
    lines: list[str] = []
    unreadable = Unreadable(10, 0.1, lines.append)
    for _ in range(3):
        unreadable.add(("cannot decode a",))
    assert lines == ["cannot decode a"]
    with pytest.raises(UserError, match="2 of 10 images cannot be read"):
        unreadable.add(("cannot decode b",))


def test_too_few_images_are_named() -> None:
    with pytest.raises(UserError, match="64 images a step asked of a data set of 20"):
        EpochBatches(20, 64, seed=0)


class Faulty(Photos):
    """One image looks whole and is not; another is read by a library that fails."""

    def __init__(self, broken: int, failing: int) -> None:
        super().__init__(40)
        self.files[broken], self.failing = Damaged().files[7], failing

    def encoded(self, index: int) -> np.ndarray | None:
        if index == self.failing:
            raise RuntimeError("the disk is on fire")
        return super().encoded(index)

    def image(self, index: int) -> np.ndarray:
        self.encoded(index)
        return super().image(index)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_other_error_is_raised_once_the_batches_before_it_are_out(load: Load, workers: int) -> None:
    order = [i for keys in EpochBatches(40, 4, seed=0) for _, i in keys]
    # DALI is told of the second batch's error before it gives the first, which it then has to decode anew
    for broken, failing, whole in ((order[1], order[6], 1), (order[13], order[18], 4)):
        loader, seen = load(Faulty(broken, failing), workers=workers, max_unreadable=1.0), []
        with pytest.raises(RuntimeError, match="the disk is on fire"):
            seen.extend(i for batch in loader for i in batch.index.tolist())
        assert len(seen) == 4 * whole
        assert [a for a, b in zip(seen, order) if b != broken] == [i for i in order[: 4 * whole] if i != broken]


class Trap:
    """Tells of the process in which it is destroyed, as a pipeline of DALI does that hangs there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cycle = folder, self

    def __del__(self) -> None:
        (self.folder / str(os.getpid())).touch()


class Collecting(Ramps):
    """Runs the garbage collector, as any code may."""

    def image(self, index: int) -> np.ndarray:
        gc.collect()
        return super().image(index)


def test_workers_leave_the_garbage_of_their_parent_alone(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_worker = torch.manual_seed

    def collecting(seed: int) -> torch.Generator:
        """A worker's first call, in which the collector happens to run if it is on."""
        if gc.isenabled():
            gc.collect()
        return seed_worker(seed)

    monkeypatch.setattr(torch, "manual_seed", collecting)
    threshold = gc.get_threshold()
    gc.set_threshold(10**6)
    try:
        Trap(tmp_path)
        assert len(indices(load(Collecting(4), workers=1))) == 4
        assert gc.isenabled()
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert [file.name for file in tmp_path.iterdir()] == [str(os.getpid())]


class Mixed(Ramps):
    """Every second image is gray."""

    def image(self, index: int) -> np.ndarray:
        return super().image(index)[:, :, : 3 if index % 2 else 1]


def test_an_image_of_other_channels_is_named(load: Load) -> None:
    with pytest.raises(UserError, match=r"image \d+ has 1 channels of uint8, not 3 of uint8"):
        list(load(Mixed()))


class Deadly(Ramps):
    """Ends the process that reads it."""

    def image(self, index: int) -> np.ndarray:
        os._exit(3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_worker_that_dies_ends_the_epoch_with_an_error(load: Load) -> None:
    with pytest.raises(RuntimeError, match="worker"):
        next(iter(load(Deadly(), workers=1)))
