"""kNN against brute force in float64 and against scikit-learn."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import Source
from ssl_toolkit.evaluation import bank as bank_module
from ssl_toolkit.evaluation import neighbours as neighbours_module
from ssl_toolkit.evaluation.bank import UNIT16, Bank, bfloat16_error, float32_error
from ssl_toolkit.evaluation.knn import Knn, KnnConfig, knn_predict
from ssl_toolkit.evaluation.neighbours import nearest, pick_engine
from ssl_toolkit.evaluation.protocol import best_setting
from ssl_toolkit.registry import typed
from tests.evaluation.fakes import ColourBackbone, bank, colour_blocks, eval_data, one_hot_data


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (90,), generator=generator)
    train = torch.randn(90, 5, generator=generator) + labels[:, None]
    return train, labels, torch.randn(20, 5, generator=generator) + 2


def brute_force(train: torch.Tensor, labels: torch.Tensor, query: torch.Tensor, k: int, t: float) -> list[float]:
    similarity = []
    for row, label in zip(train.double().tolist(), labels.tolist()):
        dot = sum(a * b for a, b in zip(row, query.tolist()))
        similarity.append((dot / math.hypot(*row) / math.hypot(*query.tolist()), label))
    votes = [0.0] * 4
    for cosine, label in sorted(similarity, reverse=True)[:k]:
        votes[label] += math.exp(cosine / t)
    return [vote / sum(votes) for vote in votes]


def test_scores_equal_brute_force() -> None:
    train, labels, queries = problem()
    ks, temperatures = [1, 3, 40], [0.07, 0.5, math.inf]
    got = knn_predict(train, labels, queries, ks=ks, temperatures=temperatures, num_classes=4)
    assert got.shape == (3, 3, 20, 4)
    for i, k in enumerate(ks):
        for j, t in enumerate(temperatures):
            for q, query in enumerate(queries.double()):
                expected = brute_force(train, labels, query, k, t)
                assert got[i, j, q].tolist() == pytest.approx(expected, abs=2e-5)


KINDS = ["bf16", "fp32", "faiss"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each engine, whatever this machine would choose."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(neighbours_module, "pick_engine", lambda *_: request.param)
    return request.param


def features(kind: str, rows: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, dim, generator=generator)
    if kind == "spread":
        return noise * torch.rand(rows, 1, generator=generator).mul(5).exp()
    if kind == "close":  # as after a ReLU, or where training collapses
        return 3 + 0.02 * noise
    if kind == "collapsed":
        return 1 + 1e-6 * noise
    if kind == "opposite":  # similarities below 0
        return noise.abs() * torch.tensor([1.0, -1.0])[torch.arange(rows) % 2, None]
    return noise[torch.randint(0, rows // 20, (rows,), generator=generator)]  # each about 20 times


def by_definition(bank: Bank, queries: Tensor, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All pairs in one sort: equals in the order of the bank."""
    unit = F.normalize(queries, dim=1)
    everything = torch.arange(len(bank)).repeat(len(queries))
    similarity = bank.pairs(unit, torch.full((len(queries),), len(bank)), everything).view(len(queries), -1)
    if own is not None:
        similarity[torch.arange(len(queries)), own] = -torch.inf
    values, index = similarity.sort(dim=1, descending=True, stable=True)
    return values[:, :k], index[:, :k]


SHAPES = ["spread", "close", "collapsed", "opposite", "repeated"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 20, 300])
@pytest.mark.parametrize("cut", [False, True])
def test_neighbours_are_exact_whatever_finds_them(
    kind: str, shape: str, k: int, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, queries = features(shape, 700, 24), features(shape, 60, 24, seed=1)
    queries[:5] = train[100:105]
    bank = Bank(train)
    expected = by_definition(bank, queries, k)
    if cut:
        monkeypatch.setattr(bank_module, "BLOCK", 24 * 90)
        monkeypatch.setattr(bank_module, "KEPT", 0)
        monkeypatch.setattr(neighbours_module, "BLOCK", 24 * 90)
        monkeypatch.setattr(neighbours_module, "SCORES", {"cpu": 90 * 7})
        monkeypatch.setattr(neighbours_module, "PENDING", 400)
        monkeypatch.setattr(neighbours_module, "PRODUCT", 32)
        monkeypatch.setattr(neighbours_module, "QUERIES", 23)
    similarity, index = nearest(Bank(train), queries, k)
    assert torch.equal(index, expected[1])
    assert torch.equal(similarity, expected[0])
    # And these are the neighbours: float64 finds none nearer than what is left out.
    exact = F.normalize(queries.double(), dim=1) @ F.normalize(train.double(), dim=1).T
    assert (similarity.double() - exact.gather(1, index)).abs().max() < 1e-6
    assert (exact.sort(1, descending=True).values[:, :k] - exact.gather(1, index)).abs().max() < 1e-6


def test_own_rows_are_left_out(kind: str) -> None:
    for shape in ("spread", "repeated"):
        bank = Bank(features(shape, 400, 8))
        own = torch.arange(30, 90)
        expected = by_definition(bank, bank.features[30:90], 9, own)
        similarity, index = nearest(bank, bank.features[30:90], 9, own=own)
        assert torch.equal(index, expected[1])
        assert torch.equal(similarity, expected[0])
        assert not (index == own[:, None]).any()


def test_shortened_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "pick_engine", lambda *_: "fp32")
    train, queries = features("spread", 700, 24), features("spread", 60, 24, seed=1)
    expected = nearest(Bank(train), queries, 20)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = nearest(Bank(train), queries, 20)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bound_on_the_error_of_bfloat16_holds(shape: str) -> None:
    train, queries = features(shape, 500, 96), F.normalize(features(shape, 200, 96, seed=1), dim=1)
    bank = Bank(train)
    exact = queries.double() @ F.normalize(train.double(), dim=1).T
    shift = queries.double() @ F.normalize(train.double(), dim=1).mean(0)
    ((_, rounded),) = bank.rounded().blocks()
    scores = (queries.bfloat16() @ rounded.T).double()
    off = (scores + shift[:, None] - exact).abs()
    allowed = bfloat16_error(bank, queries).double() + 1.01 * UNIT16 * scores.abs()
    assert (off <= allowed).all()
    single = queries @ (bank.features * bank.inverse[:, None]).T
    assert (single.double() - exact).abs().max() < float32_error(bank)


def test_what_is_gathered_is_what_is_sampled() -> None:
    train, queries = features("spread", 50, 16), F.normalize(features("spread", 7, 16, seed=1), dim=1)
    counts, index = torch.tensor([3, 0, 5, 1, 0, 0, 2]), torch.randint(0, 50, (11,))
    row = torch.repeat_interleave(torch.arange(7), counts)
    expected = (queries[row].double() * train[index].double()).sum(1)
    for products in (bank_module._sampled, bank_module._gathered):
        assert torch.allclose(products(queries, train, counts, index).double(), expected, rtol=1e-5, atol=1e-5)


def test_numbers_in_order_of_similarity_then_of_row() -> None:
    similarity = torch.tensor([0.5, -0.5, 0.0, -0.0, 1.0, 0.5, -1.0, 1e-30, -1e-30])
    row = torch.tensor([7, 1, 4, 3, 2**32 - 1, 6, 0, 5, 2])
    keys = neighbours_module._join(similarity, row)
    order = keys.argsort(descending=True)
    assert row[order].tolist() == [2**32 - 1, 6, 7, 5, 3, 4, 2, 1, 0]
    assert torch.equal(neighbours_module._similarities(keys), similarity)
    assert torch.equal(neighbours_module._rows(keys), row)


def test_which_engine_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, large = torch.device("cpu"), neighbours_module.SMALL_BANK
    for has_bf16, faiss, platform, expected in [
        (True, True, "linux", "bf16"),
        (False, True, "linux", "faiss"),
        (False, True, "darwin", "fp32"),
        (False, False, "linux", "fp32"),
    ]:
        monkeypatch.setattr(neighbours_module, "_has_bf16", lambda value=has_bf16: value)
        monkeypatch.setattr(neighbours_module.importlib.util, "find_spec", lambda name, value=faiss: value or None)
        monkeypatch.setattr(neighbours_module.sys, "platform", platform)
        assert pick_engine("auto", cpu, large) == expected
        assert pick_engine("auto", cpu, large - 1) == "fp32"
        assert pick_engine("auto", torch.device("cuda"), large) == "fp32"
        assert pick_engine("torch", cpu, large) == ("bf16" if has_bf16 else "fp32")
    with pytest.raises(UserError, match="faiss is not installed; pip install faiss-cpu"):
        Knn(KnnConfig(engine="faiss")).check(Source(ColourBackbone(), {}, "x"), {"train": colour_blocks(3)})


MEASURED = """
import sys, numpy as np, torch
from ssl_toolkit.evaluation import bank, neighbours
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024
bank.BLOCK = neighbours.BLOCK = 2**21
neighbours.SCORES = {"cpu": 2**21}
file = np.memmap(sys.argv[1], dtype="<f4", mode="w+", shape=(200_000, 256))
generator = np.random.default_rng(0)
for start in range(0, 200_000, 10_000):
    file[start:start + 10_000] = generator.standard_normal((10_000, 256), dtype=np.float32)
file.flush()
features = torch.from_numpy(np.memmap(sys.argv[1], dtype="<f4", mode="c", shape=(200_000, 256)))
neighbours.nearest(bank.Bank(features[:20_000]), features[:64], 20)
before = highest = anonymous()
def watch(count):
    global highest
    highest = max(highest, anonymous())
bank.KEPT = 0
found = bank.Bank(features)
watch(0)
original = neighbours.Search.look
def look(self, *rest):
    original(self, *rest)
    watch(0)
neighbours.Search.look = look
neighbours.nearest(found, features[:256], 20, advance=watch)
print(features.nbytes // 2**20, highest - before)
"""


@pytest.mark.command
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux' /proc")
def test_memory_does_not_grow_with_the_bank(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "features")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    size, taken = map(int, done.stdout.split()[-2:])
    assert size == 195
    assert taken < 80


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_equal_sklearn(k: int) -> None:
    train, labels, queries = problem(2)
    weighted = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    got = knn_predict(train, labels, queries, ks=[k], temperatures=[math.inf, 0.07], num_classes=4)[0]
    for scores, weights in zip(got, ["uniform", weighted]):
        oracle = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(train.double(), labels)
        assert scores.numpy() == pytest.approx(oracle.predict_proba(queries.double()), abs=2e-5)
        if weights == "uniform":
            assert scores.argmax(1).tolist() == oracle.predict(queries.double()).tolist()


def test_a_low_temperature_does_not_overflow() -> None:
    train, labels, queries = problem(3)
    scores = knn_predict(train, labels, queries, ks=[10], temperatures=[1e-4], num_classes=4)
    nearest = knn_predict(train, labels, queries, ks=[1], temperatures=[1.0], num_classes=4)
    assert scores.isfinite().all()
    assert torch.equal(scores.argmax(-1), nearest.argmax(-1))


def test_planted_answers() -> None:
    right = Knn(KnnConfig()).run(one_hot_data(400, 8, shuffled=False))
    assert right.metrics == {"top1": 100.0, "top5": 100.0}
    chance = Knn(KnnConfig()).run(one_hot_data(400, 8, shuffled=True))
    assert chance.metrics["top1"] < 25
    assert 40 < chance.metrics["top5"] < 85


def test_the_setting_is_chosen_on_validation_and_reported_on_test() -> None:
    generator = torch.Generator().manual_seed(0)
    splits = [
        bank(torch.randn(60, 3, generator=generator), torch.randint(0, 3, (60,), generator=generator)) for _ in range(3)
    ]
    outcome = Knn(KnnConfig(ks=[1, 3, 9, 27])).run(eval_data(*splits, classes=3))
    row = max(outcome.grid, key=lambda r: r["val_top1"])
    assert outcome.metrics == {"top1": row["test_top1"]}  # three classes have no top-5
    assert outcome.selected == {k: v for k, v in row.items() if not k.endswith("top1")}
    assert row["test_top1"] < max(r["test_top1"] for r in outcome.grid)  # the test split was not asked
    assert len(outcome.grid) == 4 * 4


def test_leave_one_out_chooses_on_the_training_images() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = (
        bank(torch.randn(60, 3, generator=generator), torch.randint(0, 3, (60,), generator=generator)) for _ in range(2)
    )
    data = eval_data(train, test, test, classes=3)
    options = KnnConfig(ks=[1, 3, 9, 60, 59], temperatures=[0.1], leave_one_out=True)
    assert set(Knn(options).reads(data.source)) == {"train", "test"}
    outcome = Knn(options).run(dataclasses.replace(data, banks={"train": train, "test": test}))
    weighted = lambda distance: np.exp((1 - distance) / 0.1)  # noqa: E731
    for row in outcome.grid:
        assert row["k"] < 60  # without itself there are 59
        weights = weighted if row["vote"] == "weighted" else "uniform"
        oracle = KNeighborsClassifier(row["k"], metric="cosine", weights=weights, algorithm="brute")
        right = 0
        for i in range(60):
            others = torch.arange(60) != i
            fitted = oracle.fit(train.pooled[others].double(), train.labels[others])
            right += int(fitted.predict(train.pooled[i : i + 1].double())[0] == train.labels[i])
        assert row["train_top1"] == pytest.approx(100 * right / 60)
    best = max(outcome.grid, key=lambda row: row["train_top1"])
    assert outcome.selected == {key: best[key] for key in outcome.selected}
    assert outcome.metrics["top1"] == best["test_top1"]
    assert any("without itself" in note for note in outcome.notes)


def test_leave_one_out_needs_another_image() -> None:
    with pytest.raises(UserError, match="1 images are too few"):
        Knn(KnnConfig(leave_one_out=True)).check(Source(ColourBackbone(), {}, "x"), {"train": colour_blocks(1)})


def _knn_outcomes(path: Path) -> list[Any]:
    data = one_hot_data(101, 7, shuffled=True)
    found = [Knn(KnnConfig(leave_one_out=flag)).run(data) for flag in (False, True)]
    tiny = eval_data(data.train, data.val, bank(data.test.pooled[:1], data.test.labels[:1]), 7)
    return [dataclasses.asdict(outcome) for outcome in [*found, Knn(KnnConfig()).run(tiny)]]


def _one_of(rank: int, port: int, path: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    (path / f"{rank}.json").write_text(json.dumps(_knn_outcomes(path)))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_one_of, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == json.loads(json.dumps(_knn_outcomes(tmp_path)))


def test_first_of_equal_settings_wins_and_none_is_passed_over() -> None:
    assert best_setting([{"v": None}, {"v": 2.0}, {"v": 3.0}, {"v": 3.0}], "v") == 2
    assert best_setting([{"v": None}], "v") == -1


def test_notes_name_missing_classes_and_large_k() -> None:
    data = one_hot_data(30, 3, shuffled=False)
    keep = data.train.labels != 1
    few = bank(data.train.pooled[keep], data.train.labels[keep])
    outcome = Knn(KnnConfig(ks=[5, 100])).run(eval_data(few, data.val, data.test, 3))
    assert "1 of 3 classes have no training image: class1" in outcome.notes
    assert any("k above the 20 training images" in note for note in outcome.notes)
    assert {row["k"] for row in outcome.grid} == {5}
    assert outcome.metrics["top1"] < 70


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ks": []}, "ks must"),
        ({"ks": [0]}, "ks must"),
        ({"temperatures": [0.0]}, "temperatures must be positive"),
        ({"temperatures": [], "uniform": False}, "no vote is left"),
        ({"k": 3}, "unknown key"),
        ({"engine": "fais"}, "unknown knn.engine 'fais': did you mean 'faiss'"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(KnnConfig, options, "knn")
