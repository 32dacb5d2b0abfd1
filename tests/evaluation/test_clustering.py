"""Clustering against every assignment, upsampled features and scikit-learn; planted clusters."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import ClusteringConfig, EvalData, FeatureBank
from ssl_toolkit.evaluation.clustering import (
    Clustering,
    assignment,
    cluster_counts,
    joined_cells,
    kmeans,
    renamed,
    training_cells,
)
from ssl_toolkit.evaluation.features import VOID
from ssl_toolkit.evaluation.protocol import MAPS, MASKS, POOLED, STAGES
from ssl_toolkit.progress import progress_bar
from ssl_toolkit.registry import typed
from tests.evaluation.fakes import CPU, eval_data

QUICK = ClusteringConfig(cells=2000, seeds=[0, 1])


def planted(shuffled: bool = False, count: int = 60, seed: int = 0) -> FeatureBank:
    """Cells that say their class in one-hot form, in masks of the maps' own size; or of another image if
    ``shuffled``. The pooled vector and the label are those of the class in the first cell."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 4, (count, 6, 6), generator=generator)
    labels = masks[:, 0, 0]
    maps = F.one_hot(masks, 4).permute(0, 3, 1, 2).float()
    order = torch.randperm(count, generator=generator)
    maps = maps[order] if shuffled else maps
    pooled = F.one_hot(labels[order] if shuffled else labels, 4).float()
    return FeatureBank(pooled, maps, labels, masks.to(torch.uint8), (maps[:, :2], maps[:, 2:, ::2, ::2]))


def planted_data(shuffled: bool = False) -> EvalData:
    splits = [planted(shuffled, 200 if shuffled else 60, seed) for seed in range(3)]
    return eval_data(splits[0], splits[1], splits[2], 4, pixels=6)


@pytest.mark.parametrize("clusters", [3, 5])
def test_the_assignment_is_the_best_of_all(clusters: int) -> None:
    counts = np.random.default_rng(0).integers(0, 100, (4, clusters))
    names = assignment(counts, "hungarian")
    if clusters < 4:
        every = itertools.permutations(range(4), clusters)
        best = max(sum(counts[c, k] for k, c in enumerate(chosen)) for chosen in every)
        assert sum(counts[names[k], k] for k in range(clusters)) == best
        assert len(set(names.tolist())) == clusters
    else:
        every = itertools.permutations(range(clusters), 4)
        best_clusters = max(every, key=lambda chosen: sum(counts[c, k] for c, k in enumerate(chosen)))
        for c, k in enumerate(best_clusters):
            assert names[k] == c
        (rest,) = set(range(clusters)) - set(best_clusters)
        assert names[rest] == counts[:, rest].argmax()
    assert np.array_equal(assignment(counts, "majority"), counts.argmax(0))


def test_renamed_adds_up_clusters_of_a_class() -> None:
    counts = torch.tensor([[5, 1, 2], [0, 7, 3]])
    assert renamed(counts, np.array([0, 1, 1])).tolist() == [[5, 3], [0, 10]]


def test_pixels_are_those_of_upsampled_features() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 3, 4, 3, generator=generator)
    masks = torch.randint(0, 3, (5, 17, 13), generator=generator).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = VOID
    bank = FeatureBank(maps.mean((2, 3)), maps, None, masks)
    for options in (QUICK, dataclasses.replace(QUICK, normalize=False)):
        model = kmeans(training_cells(bank, options), 4, 0, 100)
        with progress_bar("test", 5) as bar:
            (got,) = cluster_counts(bank, [model.cluster_centers_], 3, options, CPU, bar)
        cells = F.normalize(maps, dim=1) if options.normalize else maps
        pixels = F.interpolate(cells, size=(17, 13), mode="bilinear", align_corners=False)
        predicted = model.predict(pixels.permute(0, 2, 3, 1).reshape(-1, 3).numpy())
        expected = torch.zeros(3, 4, dtype=torch.int64)
        for truth, cluster in zip(masks.flatten().tolist(), predicted.tolist()):
            if truth != VOID:
                expected[truth, cluster] += 1
        assert torch.equal(got, expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_planted_clusters_are_found(normalize: bool) -> None:
    outcome = Clustering(dataclasses.replace(QUICK, normalize=normalize, seeds=[0, 1, 2])).run(planted_data())
    for name in ("miou", "foreground_miou", "pixel_accuracy", "image_accuracy", "image_nmi"):
        assert outcome.metrics[name] == pytest.approx(100)
        assert outcome.details["deviations"][name] == pytest.approx(0)
    assert outcome.details["named_on_test"]["miou"] == 100
    assert set(outcome.details["per_class_iou"].values()) == {100.0}
    assert outcome.details["clusters"] == 4


def test_features_of_other_images_are_chance() -> None:
    outcome = Clustering(QUICK).run(planted_data(shuffled=True))
    assert 20 < outcome.metrics["pixel_accuracy"] < 30
    assert 10 < outcome.metrics["miou"] < 20
    assert outcome.metrics["image_accuracy"] < 40
    assert outcome.metrics["image_nmi"] < 5


def noisy(seed: int) -> FeatureBank:
    bank = planted(count=80, seed=seed)
    noise = torch.randn(bank.maps.shape, generator=torch.Generator().manual_seed(seed))
    pooled = bank.pooled + 0.5 * torch.randn(bank.pooled.shape, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(bank, maps=bank.maps + 0.6 * noise, pooled=pooled)


def test_names_come_from_validation_and_numbers_from_test() -> None:
    train, val, test = noisy(0), noisy(1), noisy(2)
    val = dataclasses.replace(val, masks=(val.masks + 1) % 4, labels=(val.labels + 1) % 4)
    outcome = Clustering(QUICK).run(eval_data(train, val, test, 4, pixels=6))
    assert outcome.metrics["pixel_accuracy"] < 15  # every cluster has the name of the wrong class
    assert outcome.metrics["image_accuracy"] < 15
    assert outcome.details["named_on_test"]["pixel_accuracy"] > 60
    assert outcome.selected == {}


def test_means_and_deviations_over_seeds() -> None:
    banks = [noisy(seed) for seed in range(3)]
    data = eval_data(banks[0], banks[1], banks[2], 4, pixels=6)
    options = dataclasses.replace(QUICK, clusters=3, seeds=[0, 1, 2])
    outcome = Clustering(options).run(data)
    alone = [Clustering(dataclasses.replace(options, seeds=[seed])).run(data) for seed in options.seeds]
    for name, value in outcome.metrics.items():
        values = [one.metrics[name] for one in alone]
        assert value == pytest.approx(np.mean(values))
        assert outcome.details["deviations"][name] == pytest.approx(np.std(values, ddof=1))
    assert [row["seed"] for row in outcome.grid] == [0, 1, 2]
    assert [row["test_miou"] for row in outcome.grid] == [one.metrics["miou"] for one in alone]
    assert all("val_miou" in row for row in outcome.grid)
    assert not any("seeds" in note for note in alone[0].notes)


def test_image_clusters_equal_scikit_learn() -> None:
    banks = [noisy(seed) for seed in range(3)]
    options = dataclasses.replace(QUICK, seeds=[5], normalize=False)
    outcome = Clustering(options).run(eval_data(banks[0], banks[1], banks[2], 4, pixels=6))
    model = kmeans(banks[0].pooled[np.random.default_rng(0).permutation(80)].numpy(), 4, 5, 100)
    clusters = [model.predict(bank.pooled.numpy()) for bank in banks[1:]]
    best = max(
        itertools.permutations(range(4)), key=lambda names: sum(np.array(names)[clusters[0]] == banks[1].labels.numpy())
    )
    labels = banks[2].labels.numpy()
    assert outcome.metrics["image_accuracy"] == pytest.approx(100 * (np.array(best)[clusters[1]] == labels).mean())
    assert outcome.metrics["image_nmi"] == pytest.approx(100 * normalized_mutual_info_score(labels, clusters[1]))


def test_images_without_labels_have_no_image_clusters() -> None:
    data = planted_data()
    for dataset in data.datasets.values():
        dataset.classes = None
    assert set(Clustering(QUICK).run(data).metrics) == {"miou", "foreground_miou", "pixel_accuracy"}


@pytest.mark.parametrize("assign", ["hungarian", "majority"])
def test_over_clustering_is_named(assign: str) -> None:
    options = dataclasses.replace(QUICK, clusters=12, assign=assign)
    banks = [noisy(seed) for seed in range(3)]
    outcome = Clustering(options).run(eval_data(banks[0], banks[1], banks[2], 4, pixels=6))
    assert outcome.details["clusters"] == 12
    assert outcome.metrics["pixel_accuracy"] > 60
    assert Clustering(options).variant == {"hungarian": "12clusters", "majority": "12clusters-majority"}[assign]
    assert Clustering(QUICK).variant == ""


def test_stages_are_joined_at_the_finest() -> None:
    options = dataclasses.replace(QUICK, layer="stages", normalize=False)
    bank = planted()
    joined = joined_cells(bank, slice(3, 8), options)
    assert joined.shape == (5, 4, 6, 6)
    assert torch.equal(joined[:, :2], bank.stages[0][3:8])
    expected = F.interpolate(bank.stages[1][3:8], size=(6, 6), mode="bilinear", align_corners=False)
    assert torch.equal(joined[:, 2:], expected)
    unit = joined_cells(bank, [1], dataclasses.replace(options, normalize=True))
    assert torch.equal(unit[:, :2], F.normalize(bank.stages[0][1:2], dim=1))
    assert Clustering(options).variant == "stages"
    assert Clustering(options).run(planted_data()).metrics["pixel_accuracy"] > 40


def test_what_is_read() -> None:
    source = planted_data().source
    assert Clustering(QUICK).reads(source) == {
        "train": {POOLED, MAPS},
        "val": {POOLED, MAPS, MASKS},
        "test": {POOLED, MAPS, MASKS},
    }
    assert STAGES in Clustering(dataclasses.replace(QUICK, layer="stages")).reads(source)["train"]


def test_training_cells_are_bounded_and_spread() -> None:
    bank = planted()
    assert training_cells(bank, QUICK).shape == (60 * 33, 4)
    assert training_cells(bank, dataclasses.replace(QUICK, cells=20)).shape == (20, 4)
    assert training_cells(bank, dataclasses.replace(QUICK, fit_images=7)).shape == (7 * 36, 4)
    assert np.array_equal(training_cells(bank, QUICK), training_cells(bank, QUICK))
    with pytest.raises(UserError, match=r"3 training cells for 4 clusters: raise clustering\.cells"):
        Clustering(dataclasses.replace(QUICK, cells=3)).run(planted_data())


def test_fewer_distinct_vectors_than_clusters_are_no_error() -> None:
    constant = dataclasses.replace(planted(), maps=torch.ones(60, 4, 6, 6))
    outcome = Clustering(QUICK).run(eval_data(constant, constant, constant, 4, pixels=6))
    counts = torch.bincount(constant.masks.flatten().long())
    assert outcome.metrics["pixel_accuracy"] == pytest.approx(100 * float(counts.max() / counts.sum()))


def test_iterations_bound_the_fit() -> None:
    x = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)
    assert kmeans(x, 8, 0, 1).n_iter_ == 1
    assert kmeans(x, 8, 0, 100).n_iter_ > 1


def test_absent_classes_are_noted() -> None:
    def without(bank: FeatureBank) -> FeatureBank:
        masks: Tensor = bank.masks.clone()
        masks[masks == 3] = VOID
        return dataclasses.replace(bank, masks=masks)

    train, val, test = planted(seed=0), without(planted(seed=1)), without(planted(seed=2))
    outcome = Clustering(dataclasses.replace(QUICK, clusters=4)).run(eval_data(train, val, test, 5, pixels=6))
    assert outcome.details["per_class_iou"]["class4"] is None
    assert "2 of 5 classes have no validation pixel to name a cluster by: class3, class4" in outcome.notes
    assert "2 of 5 classes have no test pixel: class3, class4" in outcome.notes
    assert outcome.metrics["pixel_accuracy"] == 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "stage"}, "did you mean 'stages'"),
        ({"assign": "hungary"}, "did you mean 'hungarian'"),
        ({"clusters": 1}, "clusters must be null or 2 or more"),
        ({"cells": 0}, "cells, fit_images and iterations"),
        ({"seeds": []}, "seeds must be one or more different numbers"),
        ({"seeds": [1, 1]}, "seeds must be"),
        ({"iteration": 3}, "did you mean 'iterations'"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(ClusteringConfig, options, "clustering")
