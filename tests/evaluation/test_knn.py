"""kNN against brute force in float64 and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.knn import Knn, KnnConfig, knn_predict, neighbours
from ssl_toolkit.evaluation.protocol import best_setting
from ssl_toolkit.registry import typed
from tests.evaluation.fakes import bank, eval_data, one_hot_data


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


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_scores_equal_brute_force_whatever_the_chunk(chunk: int) -> None:
    train, labels, queries = problem()
    ks, temperatures = [1, 3, 40], [0.07, 0.5, math.inf]
    got = knn_predict(train, labels, queries, ks=ks, temperatures=temperatures, num_classes=4, chunk=chunk)
    assert got.shape == (3, 3, 20, 4)
    for i, k in enumerate(ks):
        for j, t in enumerate(temperatures):
            for q, query in enumerate(queries.double()):
                expected = brute_force(train, labels, query, k, t)
                assert got[i, j, q].tolist() == pytest.approx(expected, abs=2e-5)


def test_neighbours_in_chunks_equal_one_sort() -> None:
    train, _, queries = problem(1)
    train, queries = F.normalize(train, dim=1), F.normalize(queries, dim=1)
    similarity, index = neighbours(train, queries, 12, chunk=5)
    expected = (queries @ train.T).sort(1, descending=True)
    assert torch.equal(index, expected.indices[:, :12])
    assert torch.allclose(similarity, expected.values[:, :12])


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
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(KnnConfig, options, "knn")
