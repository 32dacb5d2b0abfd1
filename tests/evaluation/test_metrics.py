"""Metrics against scikit-learn, torchmetrics and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score, top_k_accuracy_score
from torchmetrics.classification import MulticlassJaccardIndex

from ssl_toolkit.evaluation.metrics import class_iou, confusion, ranks, segmentation_metrics, top_accuracy


def test_ranks_of_equal_scores_are_those_of_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (3, 50, 6), generator=generator).float()  # many ties
    labels = torch.randint(0, 6, (50,), generator=generator)
    got = ranks(scores, labels)
    for head in range(3):
        for row in range(50):
            order = sorted(range(6), key=lambda c: (-float(scores[head, row, c]), c))
            assert got[head, row] == order.index(int(labels[row]))
    assert torch.equal(got == 0, scores.argmax(-1) == labels)


def test_a_classifier_of_nan_is_never_right() -> None:
    scores = torch.full((2, 3), torch.nan)
    assert ranks(scores, torch.tensor([0, 2])).tolist() == [3, 3]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_accuracy_equals_sklearn(k: int) -> None:
    rng = np.random.default_rng(k)
    scores, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    got = top_accuracy(ranks(torch.from_numpy(scores), torch.from_numpy(labels)), k)
    assert float(got) == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=k, labels=range(7)))


def random_masks(seed: int, void: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 5, (4, 9, 9), generator=generator).to(torch.uint8)
    if void:
        truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    return torch.randint(0, 5, (3, 4, 9, 9), generator=generator), truth


def test_confusion_equals_sklearn_and_leaves_void_out() -> None:
    prediction, truth = random_masks(0)
    got = confusion(prediction, truth, 5)
    assert got.dtype == torch.int64
    scored = truth != 255
    for head in range(3):
        expected = confusion_matrix(truth[scored], prediction[head][scored], labels=range(5))
        assert np.array_equal(got[head].numpy(), expected)
    assert got.sum() == 3 * scored.sum()


def test_iou_equals_sklearn_and_torchmetrics() -> None:
    prediction, truth = random_masks(1)
    matrix = confusion(prediction, truth, 5)
    scored = truth != 255
    expected = jaccard_score(truth[scored], prediction[0][scored], average=None, labels=range(5))
    assert class_iou(matrix)[0].numpy() == pytest.approx(100 * expected)
    oracle = MulticlassJaccardIndex(5, average="macro", ignore_index=255)
    metrics = segmentation_metrics(matrix[0])
    assert metrics["miou"] == pytest.approx(100 * float(oracle(prediction[0], truth.long())), abs=1e-4)
    assert metrics["foreground_miou"] == pytest.approx(100 * expected[1:].mean())
    hits = (truth[scored] == prediction[0][scored]).double().mean()
    assert metrics["pixel_accuracy"] == pytest.approx(100 * float(hits))


@pytest.mark.parametrize("seed", range(6))
def test_iou_of_random_cases_with_void_and_absent_classes(seed: int) -> None:
    """Classes of 9: some in neither, some only predicted, some only true."""
    rng = np.random.default_rng(seed)
    true, said = (rng.choice(9, rng.integers(1, 6), replace=False) for _ in range(2))
    truth = torch.from_numpy(rng.choice([*true, 255], (3, 8, 8)).astype(np.uint8))
    prediction = torch.from_numpy(rng.choice([*said], (3, 8, 8)))
    matrix = confusion(prediction[None], truth, 9)[0]
    scored = truth != 255
    assert np.array_equal(matrix, confusion_matrix(truth[scored], prediction[scored], labels=range(9)))
    occurring = np.union1d(truth[scored], prediction[scored])
    oracle = MulticlassJaccardIndex(9, average=None, ignore_index=255)(prediction, truth.long()).numpy()
    found = class_iou(matrix).numpy()
    assert found[occurring] == pytest.approx(100 * oracle[occurring], abs=1e-4)
    assert np.isnan(np.delete(found, occurring)).all()
    metrics = segmentation_metrics(matrix)
    assert metrics["miou"] == pytest.approx(100 * oracle[occurring].mean(), abs=1e-4)
    macro = MulticlassJaccardIndex(9, average="macro", ignore_index=255)(prediction, truth.long())
    assert metrics["miou"] == pytest.approx(100 * float(macro), abs=1e-4)  # it leaves out what never occurs, too


def test_confusion_adds_up_over_batches() -> None:
    prediction, truth = random_masks(2)
    parts = sum(confusion(prediction[:, i : i + 1], truth[i : i + 1], 5) for i in range(4))
    assert torch.equal(parts, confusion(prediction, truth, 5))


def test_an_absent_class_is_left_out_and_a_missed_one_counts() -> None:
    truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    absent = confusion(torch.tensor([[[0, 0, 1, 1]]]), truth, 3)[0]
    assert segmentation_metrics(absent)["miou"] == 100
    assert class_iou(absent).isnan().tolist() == [False, False, True]
    # All background: class 0 has 2 of 4 pixels, class 1 is missed.
    background = segmentation_metrics(confusion(torch.zeros(1, 1, 4, dtype=torch.long), truth, 3)[0])
    assert background == {"miou": 25.0, "foreground_miou": 0.0, "pixel_accuracy": 50.0}


def test_nothing_scored_is_zero_not_nan() -> None:
    empty = segmentation_metrics(torch.zeros(3, 3, dtype=torch.int64))
    assert set(empty.values()) == {0.0}
