"""Features on disk: nothing is computed twice, nothing half written is read, and limits are kept."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from ssl_toolkit.backbones.base import Features
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import FeatureBank, Source, extraction
from ssl_toolkit.evaluation import store as store
from ssl_toolkit.evaluation.extraction import Extraction, FeaturesConfig
from ssl_toolkit.evaluation.features import Part, extract
from ssl_toolkit.evaluation.store import Entry, Writer, ranges
from tests.evaluation.fakes import CPU, PREPARATION, ArrayDataset, ColourBackbone, colour_blocks
from tests.helpers import heed_interrupts

PATIENCE = 300
POOLED, ALL = frozenset({"pooled"}), frozenset({"pooled", "maps", "stages", "masks"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extraction, "POLL_SECONDS", 0.05)
    return tmp_path / "cache" / "features"


class Counting(ColourBackbone):
    """Counts images, and stops at one."""

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        super().__init__()
        self.seen, self.fail_at, self.error = 0, fail_at, error

    def stages(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, 2), F.avg_pool2d(images, 4)]

    def forward_stages(self, images: Tensor) -> tuple[Features, list[Tensor]]:
        return self(images), self.stages(images)

    def forward(self, images: Tensor) -> Features:
        if images.any():  # not the zeros that show the shapes
            self.seen += len(images)
            if self.fail_at is not None and self.seen > self.fail_at:
                assert self.error is not None
                raise self.error
        return super().forward(images)


def extraction_of(
    backbone: ColourBackbone, console: Console | None = None, data: str = "d", **options: Any
) -> Extraction:
    source = Source(backbone, {}, "made up")
    prints = dict.fromkeys(("train", "val", "test"), data)
    precision = options.pop("precision", torch.float32)
    preparation = options.pop("preparation", PREPARATION)
    quiet = console or Console(quiet=True)
    return Extraction(source, preparation, CPU, precision, "weights", prints, FeaturesConfig(**options), quiet)


def bank_of(
    backbone: ColourBackbone, dataset: ArrayDataset, wanted: frozenset[str] = POOLED, **options: Any
) -> FeatureBank:
    return extraction_of(backbone, **options).run({"train": dataset}, {"train": wanted})["train"]


def same(a: FeatureBank, b: FeatureBank) -> bool:
    def tensors(bank: FeatureBank) -> list[Tensor | None]:
        return [bank.pooled, bank.maps, bank.labels, bank.masks, *(bank.stages or ())]

    return all(
        x is y is None or (x is not None and y is not None and x.dtype == y.dtype and torch.equal(x, y))
        for x, y in zip(tensors(a), tensors(b), strict=True)
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cached", [True, False])
def test_all_parts_are_what_memory_has(precision: torch.dtype, cached: bool) -> None:
    dataset = colour_blocks(13)
    expected = extract(
        Counting(), dataset, PREPARATION, device=CPU, precision=precision, maps=True, masks=True, stages=True
    )
    assert same(bank_of(Counting(), dataset, ALL, precision=precision, cache=cached), expected)
    again = Counting()
    assert same(bank_of(again, dataset, ALL, precision=precision, cache=cached), expected)
    assert again.seen == (0 if cached else 13)


def test_features_on_disk_are_not_changed_through_a_bank(cache: Path) -> None:
    dataset = colour_blocks(6)
    first = bank_of(Counting(), dataset)
    before = first.pooled.clone()
    first.pooled.zero_()
    assert torch.equal(bank_of(Counting(), dataset).pooled, before)


@pytest.mark.parametrize(
    "change",
    [
        {"data": "other"},
        {"precision": torch.bfloat16},
        {"preparation": dataclasses.replace(PREPARATION, mean=[0.4, 0.4, 0.4])},
        {"preparation": dataclasses.replace(PREPARATION, resize=17)},
        {"weights": "other"},
        {"length": 8},
    ],
)
def test_what_features_depend_on_makes_others(change: dict[str, Any]) -> None:
    bank_of(Counting(), colour_blocks(7))
    backbone = Counting()
    weights, length = change.pop("weights", "weights"), change.pop("length", 7)
    made = extraction_of(backbone, **change)
    made.weights = weights
    made.run({"train": colour_blocks(length)}, {"train": POOLED})
    assert backbone.seen == length


def test_batch_size_and_workers_make_no_others() -> None:
    bank_of(Counting(), colour_blocks(7))
    backbone = Counting()
    bank_of(backbone, colour_blocks(7), preparation=dataclasses.replace(PREPARATION, batch_size=3, workers=1))
    assert backbone.seen == 0


def test_other_mask_classes_make_other_masks_alone() -> None:
    dataset = colour_blocks(7)
    bank_of(Counting(), dataset, frozenset({"masks"}))
    dataset.masks = dataset.masks // 2
    backbone = Counting()
    assert torch.equal(bank_of(backbone, dataset, frozenset({"masks"})).masks, torch.from_numpy(dataset.masks))
    assert backbone.seen == 0


def test_what_is_missing_is_added_and_what_is_there_stays(cache: Path) -> None:
    dataset, backbone = colour_blocks(13), Counting()
    bank_of(backbone, dataset)
    (pooled,) = cache.glob("*/pooled.npy")
    written = pooled.stat().st_mtime_ns
    full = bank_of(backbone, dataset, ALL)
    assert backbone.seen == 26
    assert pooled.stat().st_mtime_ns == written
    assert same(full, bank_of(Counting(), dataset, ALL))
    assert same(bank_of(Counting(), dataset), extract(Counting(), dataset, PREPARATION, device=CPU))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_what_was_done_before_a_stop_is_kept(error: BaseException) -> None:
    dataset, rest, out = colour_blocks(23), Counting(), io.StringIO()
    with pytest.raises(type(error)):
        bank_of(Counting(fail_at=12, error=error), dataset, ALL)
    bank = bank_of(rest, dataset, ALL, console=Console(file=out, width=120))
    assert rest.seen == 13  # two batches of five were done
    assert same(bank, bank_of(Counting(), dataset, ALL))
    assert same(bank, bank_of(Counting(), dataset, ALL, cache=False))
    assert "features of arrays train: 23/23" in out.getvalue()


def test_a_bar_starts_where_the_work_does(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    original = extraction.progress_bar

    def spy(title: str, total: int, **options: Any) -> Any:
        starts.append((total, options["done"]))
        return original(title, total, **options)

    monkeypatch.setattr(extraction, "progress_bar", spy)
    with pytest.raises(KeyboardInterrupt):
        bank_of(Counting(fail_at=12, error=KeyboardInterrupt()), colour_blocks(23))
    bank_of(Counting(), colour_blocks(23))
    assert starts == [(23, 0), (23, 10)]


def test_damaged_files_are_made_anew(cache: Path) -> None:
    dataset = colour_blocks(9)
    bank_of(Counting(), dataset)
    expected = bank_of(Counting(), dataset, cache=False)
    (pooled,) = cache.glob("*/pooled.npy")
    kept = pooled.read_bytes()
    for broken in (b"", kept[:-5], b"no numpy file"):
        pooled.write_bytes(broken)
        assert same(bank_of(Counting(), dataset), expected)
    for text in ("{", "[1]", '{"pooled": [[0, "x"]]}'):
        for path in cache.glob("*/done-*.json"):
            path.write_text(text)
        backbone = Counting()
        assert same(bank_of(backbone, dataset), expected)
        assert backbone.seen == 9


def test_memory_is_refused_before_anything_is_computed() -> None:
    backbone, dataset = Counting(), colour_blocks(1000)
    words = (
        r"features.cache=false keeps features in memory: they take 2.4e-05 GB of memory, features.memory_gb is 2e-05"
    )
    with pytest.raises(UserError, match=words):
        extraction_of(backbone, cache=False, memory_gb=2e-5).run(
            {"train": dataset, "val": dataset}, {"train": POOLED, "val": POOLED, "test": frozenset()}
        )
    assert backbone.seen == 0
    assert bank_of(backbone, dataset, cache=False, memory_gb=2e-5).pooled.shape == (1000, 3)


def full_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes some batches."""
    original, count = Writer.put, [0]

    def put(self: Writer, rows: Any, values: Any) -> None:
        count[0] += 1
        if count[0] > writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, rows, values)

    monkeypatch.setattr(Writer, "put", put)


def test_a_full_disk_costs_a_note_where_memory_suffices(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_after(2, monkeypatch)
    dataset, backbone, out = colour_blocks(23), Counting(), io.StringIO()
    bank = bank_of(backbone, dataset, ALL, console=Console(file=out, width=300))
    assert same(bank, bank_of(Counting(), dataset, ALL, cache=False))
    assert backbone.seen == 15 + 13  # the batch that found no room was computed again
    notes = [line for line in out.getvalue().splitlines() if "kept in memory" in line]
    assert len(notes) == 1
    assert f"the disk of {cache} is full" in notes[0]
    assert not list(cache.glob("*/*.npy"))  # the room is given back


def test_a_full_disk_and_little_memory_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_after(2, monkeypatch)
    with pytest.raises(UserError, match=r"is full\): they take .* GB of memory, features.memory_gb is 1e-06; raise it"):
        bank_of(Counting(), colour_blocks(23), ALL, memory_gb=1e-6)
    assert list(cache.glob("*/*.npy"))  # the same command continues it


def test_a_folder_that_cannot_be_written(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    out = io.StringIO()
    bank = bank_of(Counting(), colour_blocks(7), console=Console(file=out, width=300))
    assert len(bank) == 7
    assert "kept in memory, not on disk" in out.getvalue()


def test_features_above_the_limit_stay_in_memory(cache: Path) -> None:
    out = io.StringIO()
    bank = bank_of(Counting(), colour_blocks(7), disk_gb=1e-8, console=Console(file=out, width=300))
    assert len(bank) == 7
    assert "features.disk_gb is 1e-08" in out.getvalue()
    assert not list(cache.glob("*/*.npy"))


def test_those_not_used_for_longest_make_room(cache: Path) -> None:
    def keys() -> set[str]:
        return {path.parent.name for path in cache.glob("*/features.json")}

    dataset, order = colour_blocks(2000), []
    for number in range(3):
        bank_of(Counting(), dataset, data=str(number))
        (new,) = keys() - set(order)
        order.append(new)
    for age, key in enumerate(order):
        os.utime(cache / key / "features.json", (1e9 + age, 1e9 + age))
    bank_of(Counting(), dataset, data="0")  # used again
    room = (sum(p.stat().st_blocks * 512 for p in cache.glob("*/*")) + 24_000 - 1000) / 1e9
    bank_of(Counting(), dataset, data="3", disk_gb=room)
    assert keys() >= {order[0], order[2]}
    assert order[1] not in keys()


def test_splits_of_one_evaluation_do_not_remove_each_other(cache: Path) -> None:
    datasets = {split: colour_blocks(2000, split) for split in ("train", "val")}
    made = extraction_of(Counting(), disk_gb=4e-5)
    made.fingerprints = {"train": "a", "val": "b"}
    banks = made.run(datasets, dict.fromkeys(datasets, POOLED))
    assert len(list(cache.glob("*/pooled.npy"))) == 1  # the second is in memory
    assert [len(bank) for bank in banks.values()] == [2000, 2000]


def test_two_evaluations_at_once_compute_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, go = colour_blocks(13), threading.Event()
    outs = [io.StringIO(), io.StringIO()]

    class Slow(Counting):
        def forward(self, images: Tensor) -> Features:
            if images.any():
                go.wait(PATIENCE)
            return super().forward(images)

    backbones, banks = [Slow(), Slow()], {}

    def evaluate(which: int) -> None:
        banks[which] = bank_of(backbones[which], dataset, ALL, console=Console(file=outs[which], width=200))

    threads = [threading.Thread(target=evaluate, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while not any("waiting for it" in out.getvalue() for out in outs) and time.monotonic() < deadline:
        time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(backbone.seen for backbone in backbones) == [0, 13]
    assert same(banks[0], banks[1])


def test_bad_masks_are_one_line_and_what_is_good_stays() -> None:
    dataset, backbone = colour_blocks(13), Counting()
    dataset.masks[9, 0, 0] = 77
    with pytest.raises(UserError, match="the mask of image 9 holds 77"):
        bank_of(backbone, dataset, frozenset({"masks"}))


def test_rows_that_are_there_as_ranges(tmp_path: Path) -> None:
    rows = np.array([1, 1, 0, 0, 1, 0, 1], dtype=bool)
    assert ranges(rows) == [[0, 2], [4, 5], [6, 7]]
    assert ranges(np.zeros(3, dtype=bool)) == []
    entry = Entry(tmp_path / "key", {}, 7)
    parts = [Part("pooled", (2,), torch.float32)]
    entry.prepare(parts)
    for process, (start, stop) in enumerate([(0, 2), (4, 5)]):
        writer = entry.writer(parts, process)
        writer.put(np.arange(start, stop), {"pooled": torch.full((stop - start, 2), 7.0)})
        writer.close()
    assert ranges(entry.done(parts)["pooled"]) == [[0, 2], [4, 5]]
    assert ranges(entry.prepare(parts)["pooled"]) == [[0, 2], [4, 5]]  # merged, and no less
    assert entry.mapped(parts)["pooled"][:, 0].tolist() == [7, 7, 0, 0, 7, 0, 0]
    assert entry.missing_bytes(parts) == 4 * 8


def test_an_entry_says_what_it_is_of(cache: Path) -> None:
    bank_of(Counting(), colour_blocks(4))
    (meta,) = cache.glob("*/features.json")
    told = json.loads(meta.read_text())
    assert told["images"] == 4
    assert told["of"]["weights"] == "weights"
    assert told["of"]["backbone"]["name"] == "colour-test"


@pytest.mark.parametrize("options", [{"memory_gb": 0}, {"disk_gb": -1}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        FeaturesConfig(**options)


KILLED = """
import sys, time
from pathlib import Path
from tests.evaluation import test_store as t
t.store.KEEP_SECONDS = 0.0
class Marking(t.Counting):
    def forward(self, images):
        found = super().forward(images)
        if self.seen > 40:
            Path(sys.argv[1]).touch()
            time.sleep(600)
        return found
t.bank_of(Marking(), t.colour_blocks(83), t.ALL)
"""


@pytest.mark.command
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_loses_little(tmp_path: Path, sent: signal.Signals) -> None:
    mark = tmp_path / "mark"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(mark)], preexec_fn=heed_interrupts)
    deadline = time.monotonic() + PATIENCE
    while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    process.wait(PATIENCE)
    assert mark.exists()
    rest = Counting()
    bank = bank_of(rest, colour_blocks(83), ALL)
    assert rest.seen == 43
    assert same(bank, bank_of(Counting(), colour_blocks(83), ALL, cache=False))


MEASURED = """
import numpy as np, torch
from tests.evaluation import test_store as t
from ssl_toolkit.evaluation.heads import Standardizer
class Wide(t.ColourBackbone):
    def forward(self, images):
        maps = images[:, :1].repeat(1, 256, 1, 1)
        return t.Features(maps, maps.mean((2, 3)))
class Same(t.ArrayDataset):
    def __len__(self): return 800
    def image(self, index): return self.images[0]
    def label(self, index): return 0
    def labels(self): return np.zeros(800, dtype=np.int64)
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024
data = Same(np.full((1, 16, 16, 3), 100, np.uint8), [0])
t.bank_of(Wide(), t.colour_blocks(10), frozenset({"pooled", "maps"}))  # libraries are loaded, buffers made
before, highest = anonymous(), 0
class Watched(Wide):
    def forward(self, images):
        global highest
        highest = max(highest, anonymous())
        return super().forward(images)
bank = t.bank_of(Watched(), data, frozenset({"pooled", "maps"}))
size = bank.maps.nbytes // 2**20
Standardizer.fit(bank.maps)
highest = max(highest, anonymous())
print(size, highest - before)
"""


@pytest.mark.command
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux' /proc")
def test_memory_stays_bounded_while_features_are_several_times_larger() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    size, taken = map(int, done.stdout.split()[-2:])
    assert size == 200
    assert taken < 120  # the heads' statistics take float64 of 64 MiB at a time


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _one_of(rank: int, port: int, action: Callable[[Path], None], path: Path) -> None:
    os.environ["SSL_TOOLKIT_CACHE"] = str(path / "cache")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    action(path)
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(action: Callable[[Path], None], path: Path) -> None:
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    processes = [spawn.Process(target=_one_of, args=(rank, port, action, path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]


def _save(path: Path, name: str, bank: FeatureBank, seen: int) -> None:
    tensors = {"pooled": bank.pooled, "maps": bank.maps, "masks": bank.masks, "labels": bank.labels}
    torch.save({**tensors, "stages": list(bank.stages or ()), "seen": seen}, path / f"{name}-{dist.get_rank()}.pt")


def _two(path: Path) -> None:
    dataset = colour_blocks(23)
    for name, options in (("disk", {}), ("memory", {"cache": False}), ("refused", {"disk_gb": 1e-9, "data": "more"})):
        backbone = Counting()
        bank = bank_of(backbone, dataset, ALL, precision=torch.bfloat16, **options)
        _save(path, name, bank, backbone.seen)
    bad = colour_blocks(23)
    bad.masks[20, 0, 0] = 99
    for cached in (True, False):
        with pytest.raises(UserError, match="mask of image 20"):  # in both
            bank_of(Counting(), bad, ALL, cache=cached, data="bad")

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            full_after(1, patch)
        backbone = Counting()
        bank = bank_of(backbone, dataset, ALL, precision=torch.bfloat16, data="full")
    _save(path, "full", bank, backbone.seen)


def test_two_processes_share_the_work_and_get_what_one_gets(tmp_path: Path) -> None:
    in_two_processes(_two, tmp_path)
    expected = bank_of(Counting(), colour_blocks(23), ALL, precision=torch.bfloat16, cache=False)
    for name in ("disk", "memory", "refused", "full"):
        seen = []
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}-{rank}.pt")
            parts = ("pooled", "maps", "masks", "labels")
            assert all(torch.equal(found[part], getattr(expected, part)) for part in parts), name
            assert all(torch.equal(a, b) for a, b in zip(found["stages"], expected.stages, strict=True))
            seen.append(found["seen"])
        if name != "full":
            assert seen == [15, 8]  # three batches of five, and the rest
