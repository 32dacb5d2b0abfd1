"""Matching between known crops: loops over cells in exact fractions, planted features, chance, many processes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.ops import box_iou

from ssl_toolkit.backbones.base import Backbone, BackboneConfig, Features
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import EvalData, MatchingConfig, Preparation, Source
from ssl_toolkit.evaluation.local_matching import LocalMatching, shares
from ssl_toolkit.evaluation.match_counts import (
    COUNTS,
    Crop,
    auc,
    dissimilarity,
    match_counts,
    overlap,
    places,
    similarities,
)
from ssl_toolkit.evaluation.view_pairs import UNIT, PairViews, spread, units
from ssl_toolkit.files import atomic_path
from ssl_toolkit.processes import leave
from ssl_toolkit.registry import typed
from ssl_toolkit.reporting.matches import read_matches
from tests.evaluation.fakes import CPU, ArrayDataset

IMAGE = 40


class Waves(Backbone):
    """Cells of 4 pixels say where in the seed image they lie, if its red channel is x and its green one y."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BackboneConfig(name="waves-test")
        self.num_features, self.stage_channels = 4, (4,)

    def forward(self, images: Tensor) -> Features:
        place = F.avg_pool2d(images[:, :2].float(), 4) * 1.2  # normalised pixels are from -2 to 2: angles below pi
        maps = torch.cat((place.cos(), place.sin()), 1)
        return Features(maps, maps.mean((2, 3)))


class Constant(Waves):
    """The same vector everywhere."""

    def forward(self, images: Tensor) -> Features:
        maps = torch.full((len(images), 4, images.shape[2] // 4, images.shape[3] // 4), 0.37)
        return Features(maps, maps.mean((2, 3)))


def ramps(count: int) -> ArrayDataset:
    """Images of 40x40 pixels: x in the red channel, y in the green one, the number of the image in the blue one."""
    y, x = np.mgrid[:IMAGE, :IMAGE].astype(np.float32) * (255 / (IMAGE - 1))
    images = np.stack([np.stack((x, y, np.full_like(x, i % 256)), -1) for i in range(count)])
    return ArrayDataset(images, split="test")


def live_data(backbone: Backbone, dataset: ArrayDataset, batch_size: int = 5, workers: int = 0) -> EvalData:
    """`EvalData` of images that are read when they are needed."""
    preparation = Preparation([0.5] * 3, [0.25] * 3, 32, 32, batch_size, workers)
    source = Source(backbone, {}, "made up")
    datasets = dict.fromkeys(("train", "val", "test"), dataset)
    return EvalData(source, datasets, {}, preparation, CPU, torch.float32)


PLAIN = PairViews(scale=[0.2, 1.0])
QUICK = MatchingConfig(images=70, views=PLAIN, examples=0)


def random_crop(batch: int, height: int, width: int, seed: int) -> Crop:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 60, (batch, 2), generator=generator)
    size = torch.randint(7, 60, (batch, 2), generator=generator)
    flip = torch.rand(batch, generator=generator) < 0.5
    return Crop(torch.cat((corner, corner + size), 1).float(), flip, height, width)


def cell(crop: Crop, image: int, row: int, column: int) -> tuple[Fraction, ...]:
    """x0, y0, x1, y1 of a cell in the seed image."""
    x0, y0, x1, y1 = (Fraction(int(v)) for v in crop.box[image].tolist())
    if crop.flip[image]:
        column = crop.width - 1 - column
    wide, high = (x1 - x0) / crop.width, (y1 - y0) / crop.height
    return x0 + column * wide, y0 + row * high, x0 + (column + 1) * wide, y0 + (row + 1) * high


def centre(crop: Crop, image: int, row: int, column: int) -> tuple[Fraction, Fraction]:
    x0, y0, x1, y1 = cell(crop, image, row, column)
    return (x0 + x1) / 2, (y0 + y1) / 2


def cells(crop: Crop) -> list[tuple[int, int]]:
    return list(itertools.product(range(crop.height), range(crop.width)))


def containing(crop: Crop, image: int, x: Fraction, y: Fraction) -> tuple[int, int] | None:
    for row, column in cells(crop):
        x0, y0, x1, y1 = cell(crop, image, row, column)
        if x0 <= x < x1 and y0 <= y < y1:
            return row, column
    return None


CROPS = [(random_crop(40, 4, 6, 0), random_crop(40, 5, 3, 1)), (random_crop(40, 7, 7, 2), random_crop(40, 7, 7, 3))]

BORDERS = (  # every centre of the first lies on the border of cells of the second
    Crop(torch.tensor([[10, 20, 22, 28]] * 4).float(), torch.tensor([False, False, True, True]), 2, 3),
    Crop(torch.tensor([[8, 18, 24, 34]] * 4).float(), torch.tensor([False, True, False, True]), 8, 8),
)


@pytest.mark.parametrize("pair", [*CROPS, BORDERS])
def test_the_true_cell_is_the_one_that_contains_the_centre(pair: tuple[Crop, Crop]) -> None:
    query, key = pair
    true = places(query, key)
    for image in range(len(query.box)):
        x0, y0, x1, y1 = (Fraction(int(v)) for v in key.box[image].tolist())
        for position, (row, column) in enumerate(cells(query)):
            x, y = centre(query, image, row, column)
            found = containing(key, image, x, y)
            assert bool(true.inside[image, position]) == (found is not None)
            if found is not None:
                assert (int(true.row[image, position]), int(true.column[image, position])) == found
                left = (x - x0) / (x1 - x0) * key.width
                right = key.width - left if key.flip[image] else left
                assert float(true.x[image, position]) == pytest.approx(float(right), abs=1e-12)
                assert float(true.y[image, position]) == pytest.approx(float((y - y0) / (y1 - y0) * key.height))
                assert pair is not BORDERS or left.denominator == 1


def random_maps(batch: int, height: int, width: int, seed: int, channels: int = 5) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def brute_force(query: Tensor, key: Tensor, a: Crop, b: Crop, distance: str) -> NDArray[np.float64]:
    """`match_counts` by loops, without ties."""
    result = np.zeros((len(query), len(COUNTS)))
    for image in range(len(query)):
        x0, y0, x1, y1 = b.box[image].double().tolist()
        wide, high = (x1 - x0) / b.width, (y1 - y0) / b.height
        for row, column in cells(a):
            x, y = centre(a, image, row, column)
            true = containing(b, image, x, y)
            if true is None:
                continue
            scores, apart = [], []
            for r, c in cells(b):
                u, v = query[image, :, row, column].double().numpy(), key[image, :, r, c].double().numpy()
                if distance == "cosine":
                    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
                scores.append(np.linalg.norm(u - v))
                cx, cy = centre(b, image, r, c)
                dx, dy = float(x - cx), float(y - cy)
                steps = max(abs(r - true[0]), abs(c - true[1]))
                apart.append([steps <= 0, steps <= 1, steps <= 2, math.hypot(dx / wide, dy / high), math.hypot(dx, dy)])
            found, chance = np.array(apart, float)[np.argmin(scores)], np.mean(np.array(apart, float), 0)
            result[image] += [1, *found[:3], *chance[:3], *found[3:], *chance[3:]]
    return result


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("pair", CROPS)
def test_counts_equal_loops(pair: tuple[Crop, Crop], distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = pair
    a, b = random_maps(40, query.height, query.width, 4), random_maps(40, key.height, key.width, 5)
    expected = brute_force(a[:12], b[:12], query[:12], key[:12], distance)
    got = match_counts(a, b, places(query, key), key, distance)
    assert np.allclose(got[:12], expected, rtol=1e-9)
    monkeypatch.setattr("ssl_toolkit.evaluation.match_counts.PAIR_NUMBERS", 2000)  # a few images at a time
    assert np.allclose(got, match_counts(a, b, places(query, key), key, distance), rtol=1e-12)


def test_chance_in_closed_form() -> None:
    query, key = CROPS[0]
    true = places(query, key)
    counts = match_counts(random_maps(40, 4, 6, 0), random_maps(40, 5, 3, 1), true, key, "l2")
    for radius in range(3):
        high = (true.row + radius).clamp_max(4) - (true.row - radius).clamp_min(0) + 1
        wide = (true.column + radius).clamp_max(2) - (true.column - radius).clamp_min(0) + 1
        chance = (high * wide / 15 * true.inside).sum(1)
        assert np.allclose(counts[:, COUNTS.index(f"chance_{radius}")], chance.numpy())


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_constant_features_are_exactly_chance(distance: str) -> None:
    query, key = CROPS[0]
    a, b = torch.full((40, 7, 4, 6), 0.1), torch.full((40, 7, 5, 3), 0.1)
    for value in (a, 0 * a):
        found = shares(match_counts(value, 0 * b if value is not a else b, places(query, key), key, distance))
        for radius in range(3):
            assert found[f"match_{radius}"] == pytest.approx(found[f"chance_{radius}"])
        assert found["error_pixels"] == pytest.approx(found["chance_error_pixels"])


def test_random_features_are_chance_within_the_standard_error() -> None:
    query, key = random_crop(600, 6, 6, 0), random_crop(600, 6, 6, 1)
    counts = match_counts(random_maps(600, 6, 6, 2), random_maps(600, 6, 6, 3), places(query, key), key, "cosine")
    found = shares(counts)
    assert found["cells"] > 3000
    for radius in range(3):
        error = found[f"match_{radius}_error"]
        assert 0 < error < 3
        assert abs(found[f"match_{radius}"] - found[f"chance_{radius}"]) < 4 * error


def test_the_standard_error_is_over_images() -> None:
    rows = np.zeros((50, len(COUNTS)))
    rows[:, 0], rows[:20, 1] = 4, 4  # 40 percent, all four cells of an image alike
    assert shares(rows)["match_0_error"] == pytest.approx(100 * math.sqrt(0.4 * 0.6 / 49))


def position_features(crop: Crop) -> Tensor:
    """``(B, 4, H, W)``: the place of each cell's centre in the seed image, on two circles."""
    maps = torch.empty(len(crop.box), 2, crop.height, crop.width, dtype=torch.float64)
    for image, (row, column) in itertools.product(range(len(crop.box)), cells(crop)):
        maps[image, :, row, column] = torch.tensor([float(v) for v in centre(crop, image, row, column)])
    angle = maps * (math.pi / 140)
    return torch.cat((angle.cos(), angle.sin()), 1)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_absolute_positions_are_always_right(distance: str) -> None:
    for query, key in CROPS:
        true = places(query, key)
        # On the border of two cells both centres are as near: there, half of a match is right.
        edge = ((true.x % 1).abs() < 1e-9) | ((true.y % 1).abs() < 1e-9)
        true = true._replace(inside=true.inside & ~edge)
        found = shares(match_counts(position_features(query), position_features(key), true, key, distance))
        assert found["match_0"] == 100
        assert found["error_cells"] <= math.sqrt(0.5)
        assert found["cells"] > 100


def test_squared_distances_in_units_of_the_vectors() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    expected = torch.cdist(a.double(), b.double()).square()
    found = dissimilarity(a, b, "l2")
    assert torch.allclose(found / found.sum((1, 2), keepdim=True), expected / expected.sum((1, 2), keepdim=True))
    assert torch.allclose(found, dissimilarity(1000 * a, 1000 * b, "l2"))
    cosine = 1 - F.cosine_similarity(a[:, :, None], b[:, None].double(), dim=3)
    assert torch.allclose(dissimilarity(a, b, "cosine"), 2 * cosine)


def test_similarities_of_planted_cells() -> None:
    # Every cell of view b has a direction of its own; cells of view a have that of the right cell, or none.
    query, key = random_crop(30, 5, 5, 6), random_crop(30, 4, 4, 7)
    true = places(query, key)
    right = (true.row * 4 + true.column).where(true.inside, 0)
    a = (F.one_hot(right, 16) * true.inside[:, :, None]).mT.reshape(30, 16, 5, 5).float()
    b = torch.eye(16).expand(30, 16, 16).reshape(30, 16, 4, 4)
    found = similarities(a, b, true, np.random.default_rng(0))
    assert len(found.matched) == int(true.inside.sum()) > 50
    assert np.allclose(found.matched, 1)
    assert np.allclose(found.same, 0)  # never the right cell
    assert len(found.same) == len(found.other) == 30 * 25
    assert set(found.image.tolist()) == set(range(30))
    assert auc(found.matched, found.same) == 100
    inside = true.inside.numpy().ravel()
    assert found.other[inside].mean() == pytest.approx(1 / 16, abs=0.06)  # any cell, of another image


def test_other_images_are_other_images() -> None:
    query = key = random_crop(4, 2, 2, 0)
    one = F.one_hot(torch.arange(4), 4).float()[:, :, None, None].expand(4, 4, 2, 2)
    found = similarities(one, one, places(query, key), np.random.default_rng(0))
    assert np.allclose(found.same, 1)
    assert np.allclose(found.other, 0)


def test_auc_equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(3, 12, 80).astype(float), generator.integers(0, 9, 300).astype(float)
    labels = np.repeat([1, 0], [80, 300])
    assert auc(positive, negative) == pytest.approx(100 * roc_auc_score(labels, np.concatenate((positive, negative))))
    assert auc(positive[:0], negative) is None


def test_overlap_equals_torchvision() -> None:
    a, b = random_crop(30, 1, 1, 0).box, random_crop(30, 1, 1, 1).box
    expected = box_iou(a.double(), b.double()).diagonal()
    assert torch.allclose(overlap(a, b), expected)
    assert (expected == 0).any()


def test_positions_in_images_are_found_through_flips_and_crops() -> None:
    outcome = LocalMatching(QUICK).run(live_data(Waves(), ramps(70)))
    for distance in ("cosine", "l2"):
        found = outcome.details["geometry"][distance]
        # Bicubic resizing bends the ramps at the borders of a crop, so points near the border of two cells may miss.
        assert found["all"]["match_0"] > 90
        assert found["all"]["match_1"] == 100
        assert found["mirrored"]["match_0"] > 90
        assert found["same orientation"]["match_0"] > 90
        assert found["all"]["error_pixels"] < 0.2 * found["all"]["chance_error_pixels"]
    assert outcome.details["geometry"]["similarity"]["all"]["auc_same_image"] > 98
    assert outcome.details["photometric"]["cosine"]["all"]["match_0"] < 60  # colours say nothing when they change
    assert outcome.metrics["match_0"] == outcome.details["photometric"]["cosine"]["all"]["match_0"]
    assert outcome.details["map"] == [8, 8]


def test_groups_add_up_to_everything() -> None:
    found = LocalMatching(QUICK).run(live_data(Waves(), ramps(70))).details["photometric"]
    bins = [name for name in found["l2"] if name.startswith("overlap")]
    assert len(bins) == 5
    for groups in (bins, ["same orientation", "mirrored"]):
        for name in ("pairs", "cells"):
            assert sum(found["l2"][group][name] for group in groups) == found["l2"]["all"][name]
        weighted = sum((found["l2"][g]["match_1"] or 0) * found["l2"][g]["cells"] for g in groups)
        assert weighted / found["l2"]["all"]["cells"] == pytest.approx(found["l2"]["all"]["match_1"])
        similar = found["similarity"]
        assert sum(similar[group]["cells"] for group in groups) == similar["all"]["cells"]
    assert found["l2"]["all"]["pairs"] == 70


def test_a_constant_backbone_is_at_chance() -> None:
    outcome = LocalMatching(QUICK).run(live_data(Constant(), ramps(40)))
    for radius in range(3):
        assert outcome.metrics[f"match_{radius}"] == pytest.approx(outcome.metrics[f"chance_{radius}"])
    assert outcome.metrics["auc"] == pytest.approx(50)


def same(a: Any, b: Any) -> bool:
    return repr(a) == repr(b)


def test_results_depend_on_neither_batch_size_nor_workers() -> None:
    options = dataclasses.replace(QUICK, images=40)
    results = [LocalMatching(options).run(live_data(Waves(), ramps(40), *how)) for how in ((5, 0), (64, 0), (5, 1))]
    assert same(results[0].details, results[1].details)
    assert same(results[0].details, results[2].details)
    other = LocalMatching(dataclasses.replace(options, seed=1)).run(live_data(Waves(), ramps(40)))
    assert not same(results[0].details, other.details)


def test_units_leave_no_image_alone() -> None:
    assert [len(part) for part in units(range(2 * UNIT + 1))] == [UNIT, UNIT + 1]
    assert [len(part) for part in units(range(UNIT + 2))] == [UNIT, 2]
    assert list(itertools.chain(*units(range(100)))) == list(range(100))
    assert spread(1001, 3).tolist() == [0, 500, 1000]
    assert spread(4, 100).tolist() == [0, 1, 2, 3]


def _process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    outcome = LocalMatching(QUICK).run(live_data(Waves(), ramps(70)))
    (Path(folder) / f"{rank}").write_text(repr((outcome.metrics, outcome.details, outcome.grid)))
    broken = ramps(70)
    broken.images = list(broken.images)
    broken.images[40] = broken.images[40][..., :2]  # read by the second process
    with pytest.raises(UserError, match="image 40 has 2 channels"):
        LocalMatching(QUICK).run(live_data(Waves(), broken))
    leave()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    outcome = LocalMatching(QUICK).run(live_data(Waves(), ramps(70)))
    torch.set_num_threads(threads)
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0]
    expected = repr((outcome.metrics, outcome.details, outcome.grid))
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == expected


def test_examples_can_be_drawn(tmp_path: Path) -> None:
    options = dataclasses.replace(QUICK, images=4, examples=3, augment=["geometry"], distances=["l2"])
    outcome = LocalMatching(options).run(live_data(Waves(), ramps(40)))
    assert outcome.examples["index"].tolist() == [0, 20, 39]
    with atomic_path(tmp_path / "matches.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **outcome.examples)  # type: ignore[arg-type]
    examples = read_matches(tmp_path / "matches.npz")
    assert len(examples) == 3
    for example in examples:
        assert example.seed.shape == (IMAGE, IMAGE, 3)
        assert example.grid == (8, 8)
        assert example.matches["feature"].kept.sum() == 10
        agree = example.matches["feature"].index == example.matches["location"].index
        assert agree[example.matches["location"].kept].mean() > 0.8


def test_an_image_that_cannot_be_read_is_named() -> None:
    dataset = ramps(40)
    dataset.images = list(dataset.images)
    dataset.images[7] = dataset.images[7][..., :2]
    with pytest.raises(UserError, match="arrays test: image 7 has 2 channels") as caught:
        LocalMatching(QUICK).run(live_data(Waves(), dataset))
    assert "\n" not in str(caught.value)


def test_features_that_are_not_finite_are_an_error() -> None:
    class Broken(Waves):
        def forward(self, images: Tensor) -> Features:
            return Features(*(torch.nan * x for x in super().forward(images)))

    with pytest.raises(UserError, match="made up gives nan or infinity"):
        LocalMatching(QUICK).run(live_data(Broken(), ramps(40)))


def test_one_test_image_is_too_few() -> None:
    data = live_data(Waves(), ramps(1))
    with pytest.raises(UserError, match="matching needs 2 test images or more: arrays has 1"):
        LocalMatching(QUICK).check(data.source, data.datasets)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": 1}, "images must be 2 or more"),
        ({"augment": []}, "augment must hold one or more of photometric, geometry"),
        ({"augment": ["geometri"]}, "did you mean 'geometry'"),
        ({"distances": ["l2", "l2"]}, "each once"),
        ({"overlaps": [0.0, 0.5]}, "overlaps must rise from 0 to 1"),
        ({"overlaps": [0.0, 0.5, 0.5, 1.0]}, "overlaps must rise"),
        ({"views": {"flip": 2}}, "flip is a probability"),
        ({"views": {"size": 4}}, "size >= 8"),
        ({"views": {"flips": 0.5}}, "did you mean 'flip'"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        typed(MatchingConfig, options, "matching")


def test_options_change_what_is_measured() -> None:
    data = live_data(Waves(), ramps(40))
    views = dataclasses.replace(PLAIN, flip=0.0, size=48, scale=[0.9, 1.0])
    options = MatchingConfig(images=20, augment=["geometry"], distances=["l2"], overlaps=[0, 0.7, 1], views=views)
    outcome = LocalMatching(options).run(data)
    assert set(outcome.details) == {"geometry", "map"}
    assert set(outcome.details["geometry"]) == {"l2", "similarity"}
    assert outcome.details["map"] == [12, 12]
    found = outcome.details["geometry"]["l2"]
    assert found["mirrored"]["pairs"] == 0
    assert found["mirrored"]["match_0"] is None
    assert found["overlap 0.7 to 1"]["pairs"] == found["all"]["pairs"] == 20
    assert [(row["augment"], row["distance"]) for row in outcome.grid] == [("geometry", "l2")]
    assert "geometry views, l2" in outcome.notes[0]
