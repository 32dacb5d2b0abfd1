"""Neighbours and which are kept, against loops over all pairs of cells in float64."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_toolkit.matching import (
    CellAxes,
    Matches,
    Nearest,
    cell_axes,
    nearest_features,
    nearest_locations,
    pixel_distances,
    squared_distances,
    top_gamma,
    within,
)
from tests.matching.oracles import loop_centres, loop_nearest, random_boxes, random_flips

Size = tuple[int, int]

SIZE_PAIRS: list[tuple[Size, Size]] = [
    ((7, 7), (7, 7)),
    ((3, 3), (7, 7)),
    ((7, 7), (3, 3)),
    ((5, 3), (2, 6)),
    ((1, 1), (4, 5)),
]


def two_views(first: Size, second: Size, count: int = 12, dtype: torch.dtype = torch.float64) -> list[Any]:
    """``[box, flip, axes]`` of two views of ``count`` images, all four combinations of flips among them."""
    views = []
    for seed, size in ((1, first), (2, second)):
        box, flip = random_boxes(count, seed), random_flips(count, seed + 10)
        views.append((box, flip, cell_axes(box.to(dtype), *size, flip)))
    return views


@pytest.mark.parametrize("sizes", SIZE_PAIRS)
def test_nearest_locations_equal_the_loop(sizes: tuple[Size, Size]) -> None:
    (box, flip, query), (other, other_flip, key) = two_views(*sizes)
    nearest = nearest_locations(query, key)
    for b in range(len(box)):
        cells, distances = loop_nearest(
            loop_centres(box[b].tolist(), *sizes[0], bool(flip[b])),
            loop_centres(other[b].tolist(), *sizes[1], bool(other_flip[b])),
        )
        assert nearest.key[b].tolist() == cells
        assert nearest.distance[b].tolist() == pytest.approx(distances, rel=1e-12)


def test_location_ties_go_to_the_earlier_cell() -> None:
    """The centre of a single cell is as far from all cells of a 2 x 2 map, and from the inner four of a 4 x 4 map."""
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    one = cell_axes(box, 1, 1)
    for flip in (None, torch.tensor([True])):
        assert nearest_locations(one, cell_axes(box, 2, 2, flip)).key.item() == 0
        assert nearest_locations(one, cell_axes(box, 4, 4, flip)).key.item() == 5


@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
def test_identical_crops_give_the_identity(size: Size) -> None:
    axes = cell_axes(random_boxes(6, seed=3), *size, random_flips(6, seed=4))
    nearest = nearest_locations(axes, axes)
    assert (nearest.key == torch.arange(axes.cells)).all()
    assert (nearest.distance == 0).all()
    vectors = torch.randn(6, axes.cells, 16, generator=torch.Generator().manual_seed(5)) + 3
    found = nearest_features(squared_distances(vectors, vectors))
    assert (found.key == torch.arange(axes.cells)).all()
    assert (found.distance < 0.01).all()


def test_a_flipped_view_gives_mirrored_columns() -> None:
    box = random_boxes(3, seed=6)
    flipped = torch.ones(3, dtype=torch.bool)
    plain, mirrored, unaware = cell_axes(box, 4, 5), cell_axes(box, 4, 5, flipped), cell_axes(box, 4, 5)
    expected = torch.arange(20).view(4, 5).flip(1).flatten()
    assert (nearest_locations(plain, mirrored).key == expected).all()
    assert (nearest_locations(mirrored, plain).key == expected).all()
    assert (nearest_locations(plain, unaware).key == torch.arange(20)).all()


def far_views(dtype: torch.dtype) -> tuple[CellAxes, CellAxes]:
    """Overlapping crops of 20 to 140 pixels at coordinates up to 4000."""
    box = random_boxes(200, seed=7, start=3850.0, side=(20.0, 140.0))
    other = box + (torch.rand(200, 4, generator=torch.Generator().manual_seed(8)) - 0.5) * 10
    flips = random_flips(200, seed=9), random_flips(200, seed=10)
    return cell_axes(box.to(dtype), 7, 7, flips[0]), cell_axes(other.to(dtype), 7, 7, flips[1])


def excess(chosen: Tensor, distances: Tensor) -> Tensor:
    """How much farther than the nearest the chosen cells are."""
    return distances.gather(2, chosen[:, :, None])[:, :, 0] - distances.min(dim=2).values


def test_locations_are_exact_in_float32() -> None:
    query, key = far_views(torch.float64)
    offsets = query.points()[:, :, None, :] - key.points()[:, None, :, :]
    distances = offsets.square().sum(dim=3).sqrt()
    query, key = far_views(torch.float32)
    nearest = nearest_locations(query, key)
    assert nearest.distance.dtype == torch.float32
    assert excess(nearest.key, distances).max() < 1e-3
    assert (nearest.distance - distances.min(dim=2).values).abs().max() < 1e-3
    # What the product form, the default of cdist for more than 25 points, makes of the same coordinates.
    product = torch.cdist(query.points(), key.points(), compute_mode="use_mm_for_euclid_dist")
    assert (product - distances).abs().max() > 0.5
    assert excess(product.argmin(dim=2), distances).max() > 0.1


def loop_features(x: Tensor, y: Tensor) -> tuple[list[int], list[float]]:
    distances = [[math.dist(a, c) for c in y.double().tolist()] for a in x.double().tolist()]
    return [row.index(min(row)) for row in distances], [min(row) for row in distances]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 1e-4)])
def test_nearest_features_equal_the_loop_both_ways(dtype: torch.dtype, tolerance: float) -> None:
    """bfloat16 inputs are matched as the float32 numbers they are."""
    generator = torch.Generator().manual_seed(11)
    x = (torch.randn(3, 9, 40, generator=generator) + 10).to(dtype)
    y = (torch.randn(3, 25, 40, generator=generator) + 10).to(dtype)
    squared = squared_distances(x, y)
    assert squared.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for b in range(3):
        for nearest, a, c in ((nearest_features(squared), x, y), (nearest_features(squared.mT), y, x)):
            cells, distances = loop_features(a[b], c[b])
            assert nearest.key[b].tolist() == cells
            assert nearest.distance[b].tolist() == pytest.approx(distances, rel=tolerance)


def test_distances_survive_a_large_common_mean() -> None:
    """Vectors of one image that differ by a hundredth of what they share."""
    generator = torch.Generator().manual_seed(12)
    mean = 100 * torch.randn(4, 1, 64, generator=generator)
    x, y = (mean + torch.randn(4, p, 64, generator=generator) for p in (20, 30))
    expected = (x.double()[:, :, None] - y.double()[:, None]).square().sum(dim=3)
    torch.testing.assert_close(squared_distances(x, y).double(), expected, rtol=1e-4, atol=0)
    norms = x.square().sum(dim=2)[:, :, None] + y.square().sum(dim=2)[:, None]
    plain = norms - 2 * x @ y.mT
    assert ((plain.double() - expected).abs() / expected).max() > 1e-3


@pytest.mark.parametrize("shape", [(5000, 2, 3, 100), (3, 700, 500, 1000), (7, 1, 1, 1)])
def test_chunks_of_the_batch_change_nothing(shape: tuple[int, int, int, int]) -> None:
    """Many images a chunk, one image a chunk, a single cell; the last chunk is short."""
    batch, p, q, channels = shape
    generator = torch.Generator().manual_seed(13)
    x, y = (torch.randn(batch, n, channels, generator=generator) for n in (p, q))
    for b in (0, batch // 2, batch - 1):
        expected = torch.cdist(x[b].double(), y[b].double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        torch.testing.assert_close(squared_distances(x, y)[b].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_distances_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(14)
    x, y = (torch.randn(3, p, 64, generator=generator).to(dtype) for p in (9, 25))
    expected = squared_distances(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.bmm(x.float(), y.float().mT).dtype == torch.bfloat16
        found = squared_distances(x, y)
        query, key = (cell_axes(random_boxes(3, seed), 3, 3) for seed in (1, 2))
        assert nearest_locations(query, key).distance.dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_no_graph() -> None:
    x = torch.randn(2, 4, 3, requires_grad=True)
    squared = squared_distances(x, x)
    assert not squared.requires_grad
    assert not nearest_features(x.square()).distance.requires_grad
    assert not top_gamma(Nearest(torch.zeros(2, 4, dtype=torch.int64), x[:, :, 0]), 2).distance.requires_grad


def some_nearest(ties: bool = False) -> Nearest:
    generator = torch.Generator().manual_seed(15)
    distance = torch.rand(6, 20, generator=generator)
    if ties:
        distance = (distance * 3).floor()
    return Nearest(torch.randint(50, (6, 20), generator=generator), distance)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("gamma", [None, 1, 7, np.int64(19), 20])
def test_top_gamma_keeps_the_closest_in_the_order_asked(gamma: int | None, ties: bool) -> None:
    nearest = some_nearest(ties)
    raster, by_distance = top_gamma(nearest, gamma), top_gamma(nearest, gamma, order="distance")
    for b in range(6):
        ranked = sorted(range(20), key=lambda p: (nearest.distance[b, p].item(), p))[:gamma]
        for matches, expected in ((raster, sorted(ranked)), (by_distance, ranked)):
            assert matches.query[b].tolist() == expected
            assert matches.key[b].tolist() == nearest.key[b, expected].tolist()
            assert matches.distance[b].tolist() == nearest.distance[b, expected].tolist()


@pytest.mark.parametrize("order", ["raster", "distance"])
def test_gamma_above_the_cells_keeps_all(order: str) -> None:
    nearest = some_nearest()
    with pytest.warns(UserWarning, match="gamma 30 is above the 20 cells of the map; all 20 are kept"):
        clamped = top_gamma(nearest, 30, order)
    for found, expected in zip(clamped, top_gamma(nearest, None, order)):
        assert torch.equal(found, expected)


def test_a_clamped_gamma_warns_once_for_each_size() -> None:
    small = Nearest(*(t[:, :9] for t in some_nearest()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            top_gamma(some_nearest(), 21)
            top_gamma(some_nearest(), 21, order="distance")
            top_gamma(small, 21)
            top_gamma(some_nearest(), 22)
    assert len({str(w.message) for w in caught}) == len(caught) == 3


def test_within_equals_the_loop() -> None:
    sizes = ((4, 3), (6, 6))
    (box, flip, query), (other, other_flip, key) = two_views(*sizes)
    every = top_gamma(nearest_locations(query, key))
    generator = torch.Generator().manual_seed(16)
    anywhere = Matches(every.query, torch.randint(36, every.key.shape, generator=generator), every.distance)
    for matches in (every, anywhere):
        pixels = pixel_distances(matches, query, key)
        for max_distance in (0.1, 0.7, 2.0):
            kept = within(matches, query, key, max_distance)
            for b in range(len(box)):
                places = loop_centres(box[b].tolist(), *sizes[0], bool(flip[b]))
                others = loop_centres(other[b].tolist(), *sizes[1], bool(other_flip[b]))
                diagonals = [
                    math.hypot((x1 - x0) / size[1], (y1 - y0) / size[0])
                    for (x0, y0, x1, y1), size in zip((box[b].tolist(), other[b].tolist()), sizes)
                ]
                pairs = zip(matches.query[b].tolist(), matches.key[b].tolist())
                apart = [math.dist(places[p], others[q]) for p, q in pairs]
                assert pixels[b].tolist() == pytest.approx(apart)
                assert kept[b].tolist() == [d <= max_distance * max(diagonals) for d in apart]
    assert 0 < within(every, query, key, 0.7).float().mean() < 1
    assert within(every, query, key, math.inf).all()


def test_disjoint_crops_give_gamma_pairs_but_none_within() -> None:
    box = random_boxes(5, seed=17)
    query, key = cell_axes(box, 7, 7), cell_axes(box + 1000, 3, 3)
    matches = top_gamma(nearest_locations(query, key), 20)
    assert matches.query.shape == matches.key.shape == (5, 20)
    assert not within(matches, query, key, 0.7).any()


def test_bad_shapes_are_named() -> None:
    axes, fewer = (cell_axes(random_boxes(n, seed=18), 3, 3) for n in (4, 3))
    with pytest.raises(ValueError, match=r"key cells: y \(3, 3\)"):
        nearest_locations(axes, fewer)
    for x, y in (((2, 4, 3), (1, 4, 3)), ((2, 4, 3), (2, 4, 5)), ((2, 4, 3), (4, 3))):
        with pytest.raises(ValueError, match=r"vectors \(2, 4, 3\) and .*expected \(B, P, C\)"):
            squared_distances(torch.zeros(x), torch.zeros(y))
    with pytest.raises(ValueError, match=r"\(2, 0, 3\) of a map without cells"):
        squared_distances(torch.zeros(2, 4, 3), torch.zeros(2, 0, 3))
    for shape in ((4, 4), (2, 4, 0)):
        with pytest.raises(ValueError, match=r"squared distances \(.*expected \(B, P, Q\)"):
            nearest_features(torch.zeros(shape))
    index = torch.zeros(4, 9, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"nearest key \(4, 9\), distance \(4, 8\)"):
        top_gamma(Nearest(index, torch.zeros(4, 8)))
    with pytest.raises(ValueError, match=r"matches query \(4, 9\), key \(4, 9\), distance \(4, 9\).*B 3"):
        within(Matches(index, index, index.float()), fewer, fewer, 0.7)
    with pytest.raises(ValueError, match=r"matches query \(4, 9\), key \(4, 2\)"):
        pixel_distances(Matches(index, index[:, :2], index.float()), axes, axes)


@pytest.mark.parametrize("gamma", [0, -3, 2.0, 0.41, True, "20", math.nan])
def test_bad_gamma_is_named(gamma: Any) -> None:
    with pytest.raises(ValueError, match=r"gamma must be a whole number of at least 1, not .*\(6, 20\)"):
        top_gamma(some_nearest(), gamma)


def test_bad_order_and_distance_are_named() -> None:
    with pytest.raises(ValueError, match="order must be 'raster' or 'distance', not 'rastr'"):
        top_gamma(some_nearest(), 5, order="rastr")
    axes = cell_axes(random_boxes(6, seed=19), 4, 5)
    for bad in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_distance must be above 0"):
            within(top_gamma(nearest_locations(axes, axes)), axes, axes, bad)
