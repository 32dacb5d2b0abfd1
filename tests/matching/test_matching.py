"""Matching against brute force over all pairs of cells."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_toolkit.matching import (
    cell_axes,
    feature_matches,
    location_matches,
    matched_vectors,
    squared_distances,
)


def loop_centres(box: list[float], height: int, width: int, flip: bool) -> list[tuple[float, float]]:
    x0, y0, x1, y1 = box
    cells = []
    for row in range(height):
        for column in range(width):
            across = (width - 1 - column) if flip else column
            cells.append((y0 + (row + 0.5) * (y1 - y0) / height, x0 + (across + 0.5) * (x1 - x0) / width))
    return cells


BOXES = [[10.0, 20.0, 73.0, 54.0], [3.0, 0.0, 40.0, 99.0], [200.0, 10.0, 230.0, 31.0]]
OTHERS = [[15.0, 12.0, 80.0, 60.0], [0.0, 50.0, 60.0, 140.0], [1.0, 2.0, 31.0, 45.0]]


@pytest.mark.parametrize("sizes", [((7, 7), (7, 7)), ((3, 3), (7, 7)), ((5, 3), (2, 6))])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (True, True)])
def test_location_matches_equal_brute_force(
    sizes: tuple[tuple[int, int], tuple[int, int]], flips: tuple[bool, bool]
) -> None:
    axes = [
        cell_axes(torch.tensor(boxes, dtype=torch.float64), *size, torch.tensor([flip] * 3))
        for boxes, size, flip in zip((BOXES, OTHERS), sizes, flips)
    ]
    matches = location_matches(axes[0], axes[1])
    for b in range(3):
        query = loop_centres(BOXES[b], *sizes[0], flips[0])
        key = loop_centres(OTHERS[b], *sizes[1], flips[1])
        torch.testing.assert_close(axes[0].points()[b], torch.tensor(query, dtype=torch.float64), rtol=1e-12, atol=1e-9)
        for p, place in enumerate(query):
            distances = [math.dist(place, other) for other in key]
            assert matches.distance[b, p].item() == pytest.approx(min(distances))
            assert distances[matches.key[b, p]] == pytest.approx(min(distances))


def test_identical_crops_give_the_identity() -> None:
    axes = cell_axes(torch.tensor(BOXES), 7, 7, torch.tensor([False, True, False]))
    matches = location_matches(axes, axes)
    assert (matches.key == torch.arange(49)).all()
    assert (matches.distance == 0).all()


def test_a_flipped_view_gives_mirrored_columns() -> None:
    box = torch.tensor(BOXES)
    plain = cell_axes(box, 4, 5, torch.zeros(3, dtype=torch.bool))
    mirrored = cell_axes(box, 4, 5, torch.ones(3, dtype=torch.bool))
    expected = torch.arange(20).view(4, 5).flip(1).flatten()
    assert (location_matches(plain, mirrored).key == expected).all()
    unaware = cell_axes(box, 4, 5)
    assert (location_matches(plain, unaware).key == torch.arange(20)).all()


def test_centres_lie_inside_the_box() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator) * 400
    size = 1 + torch.rand(50, 2, generator=generator) * 300
    box = torch.cat((corner, corner + size), dim=1)
    points = cell_axes(box, 7, 3, torch.rand(50, generator=generator) < 0.5).points()
    assert (points[..., 0] > box[:, None, 1]).all()
    assert (points[..., 0] < box[:, None, 3]).all()
    assert (points[..., 1] > box[:, None, 0]).all()
    assert (points[..., 1] < box[:, None, 2]).all()


def test_top_gamma_keeps_the_closest_in_the_order_asked() -> None:
    axes = [cell_axes(torch.tensor(boxes), 7, 7) for boxes in (BOXES, OTHERS)]
    every = location_matches(axes[0], axes[1])
    for gamma in (1, 20, 49):
        raster = location_matches(axes[0], axes[1], gamma)
        by_distance = location_matches(axes[0], axes[1], gamma, order="distance")
        for b in range(3):
            ranked = sorted(range(49), key=lambda p: (every.distance[b, p].item(), p))[:gamma]
            assert by_distance.query[b].tolist() == ranked
            assert raster.query[b].tolist() == sorted(ranked)
            assert raster.key[b].tolist() == every.key[b, sorted(ranked)].tolist()


def test_gamma_above_the_cells_keeps_all_and_says_so() -> None:
    axes = cell_axes(torch.tensor(BOXES), 3, 3)
    with pytest.warns(UserWarning, match="gamma 20 is above the 9 cells"):
        assert location_matches(axes, axes, 20).query.shape == (3, 9)
    with pytest.raises(ValueError, match="gamma must be at least 1, not 0"):
        location_matches(axes, axes, 0)


def brute_nearest(x: Tensor, y: Tensor) -> tuple[list[int], list[float]]:
    found = []
    for vector in x:
        distances = [(vector - other).square().sum().item() for other in y]
        best = min(range(len(distances)), key=distances.__getitem__)
        found.append((best, math.sqrt(distances[best])))
    return [i for i, _ in found], [d for _, d in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feature_matches_equal_brute_force_both_ways(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, 9, 6, generator=generator).to(dtype) + 10
    y = torch.randn(3, 25, 6, generator=generator).to(dtype) + 10
    squared = squared_distances(x, y)
    forward, backward = feature_matches(squared), feature_matches(squared.mT)
    for b in range(3):
        for matches, a, c in ((forward, x, y), (backward, y, x)):
            nearest, distances = brute_nearest(a[b].double(), c[b].double())
            assert matches.key[b].tolist() == nearest
            assert matches.distance[b].tolist() == pytest.approx(distances, rel=1e-4)


def test_matched_vectors_are_grouped_by_slot_with_gradients() -> None:
    vectors = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    cells = torch.tensor([[0, 5], [2, 2], [4, 1]])
    groups = matched_vectors(vectors, cells)
    assert groups.shape == (2, 3, 4)
    for g in range(2):
        for b in range(3):
            assert torch.equal(groups[g, b], vectors[b, cells[b, g]])
    groups.sum().backward()
    assert vectors.grad is not None
    counts = torch.zeros(3, 6, dtype=torch.float64)
    for b in range(3):
        for g in range(2):
            counts[b, cells[b, g]] += 1
    assert torch.equal(vectors.grad, counts[:, :, None].expand(3, 6, 4))


def test_matching_builds_no_graph() -> None:
    x = torch.randn(2, 4, 3, requires_grad=True)
    assert not squared_distances(x, x).requires_grad
