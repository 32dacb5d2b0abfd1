"""Match statistics against loops over images and pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_toolkit.matching import (
    CellAxes,
    Matches,
    Nearest,
    cell_axes,
    match_statistics,
    nearest_features,
    nearest_locations,
    squared_distances,
    top_gamma,
)
from tests.matching.oracles import loop_centres, random_boxes, random_flips

SIZES = ((5, 7), (4, 3))
BATCH = 10

LOCATION = {"location_overlap", "location_pixels", "location_duplicates"}
FEATURE = {"feature_pixels", "feature_duplicates"}
AGREEMENT = {"agreement", "agreement_1"}


def loop_statistics(
    boxes: list[list[list[float]]],
    flips: list[list[bool]],
    nearest: dict[str, list[list[int]]],
    kept: dict[str, list[list[tuple[int, int]]]],
) -> dict[str, float]:
    """As documented: ``nearest`` by kind and image, ``kept`` pairs by kind and image."""
    places = [[loop_centres(boxes[v][b], *SIZES[v], flips[v][b]) for b in range(BATCH)] for v in (0, 1)]

    def overlaps(b: int, p: int) -> bool:
        (y, x), (x0, y0, x1, y1) = places[0][b][p], boxes[1][b]
        return y0 <= y < y1 and x0 <= x < x1

    result = {}
    for kind, images in kept.items():
        pairs = [(b, p, q) for b, image in enumerate(images) for p, q in image]
        result[f"{kind}_overlap"] = sum(overlaps(b, p) for b, p, _ in pairs) / len(pairs)
        result[f"{kind}_pixels"] = sum(math.dist(places[0][b][p], places[1][b][q]) for b, p, q in pairs) / len(pairs)
        repeated = [1 - len({q for _, q in image}) / len(image) for image in images]
        result[f"{kind}_duplicates"] = sum(repeated) / BATCH
    del result["feature_overlap"]
    same, close, counted = 0, 0, 0
    for b in range(BATCH):
        for p in range(SIZES[0][0] * SIZES[0][1]):
            if not overlaps(b, p):
                continue
            (r, c), (s, d) = (divmod(nearest[kind][b][p], SIZES[1][1]) for kind in ("location", "feature"))
            counted += 1
            same += (r, c) == (s, d)
            close += abs(r - s) <= 1 and abs(c - d) <= 1
    return {**result, "agreement": same / counted, "agreement_1": close / counted}


def pairs_of(matches: Matches) -> list[list[tuple[int, int]]]:
    return [list(zip(q, k)) for q, k in zip(matches.query.tolist(), matches.key.tolist())]


def random_features(query: CellAxes, key: CellAxes, noise: float) -> Nearest:
    """Neighbours among vectors that tell where a cell lies, give or take ``noise`` pixels."""
    generator = torch.Generator().manual_seed(20)
    x, y = (a.points() + noise * torch.randn(a.points().shape, generator=generator) for a in (query, key))
    return nearest_features(squared_distances(x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_equal_the_loop(dtype: torch.dtype) -> None:
    boxes = [random_boxes(BATCH, seed) for seed in (1, 2)]
    flips = [random_flips(BATCH, seed) for seed in (3, 4)]
    query, key = (cell_axes(box.to(dtype), *size, flip) for box, size, flip in zip(boxes, SIZES, flips))
    location, feature = nearest_locations(query, key), random_features(query, key, noise=10.0)
    kept_location, kept_feature = top_gamma(location, 12), top_gamma(feature, 9, order="distance")
    found = match_statistics(
        query, key, location=location, feature=feature, kept_location=kept_location, kept_feature=kept_feature
    )
    expected = loop_statistics(
        [b.tolist() for b in boxes],
        [f.tolist() for f in flips],
        {"location": location.key.tolist(), "feature": feature.key.tolist()},
        {"location": pairs_of(kept_location), "feature": pairs_of(kept_feature)},
    )
    assert set(found) == LOCATION | FEATURE | AGREEMENT
    assert 0 < expected["agreement"] < expected["agreement_1"] < 1
    assert 0 < expected["location_overlap"] < 1
    for name, value in found.items():
        assert value.shape == ()
        assert value.is_floating_point()
        assert not value.requires_grad
        assert value.item() == pytest.approx(expected[name], rel=1e-5), name


def test_identical_crops_match_perfectly() -> None:
    axes = cell_axes(random_boxes(4, seed=5), 6, 5, random_flips(4, seed=6))
    location, feature = nearest_locations(axes, axes), random_features(axes, axes, noise=0.0)
    found = match_statistics(
        axes,
        axes,
        location=location,
        feature=feature,
        kept_location=top_gamma(location, 8),
        kept_feature=top_gamma(feature),
    )
    ones = {"location_overlap", "agreement", "agreement_1"}
    assert {name: value.item() for name, value in found.items()} == {name: float(name in ones) for name in found}


def test_duplicates_and_distances_by_hand() -> None:
    """Four cells at x 1, 3, 5, 7 all matched with the first key cell, at x 1; in the other image each with its own."""
    axes = cell_axes(torch.tensor([[0.0, 0.0, 8.0, 2.0]] * 2), 1, 4)
    cells = torch.arange(4).expand(2, 4)
    key = torch.stack((torch.zeros(4, dtype=torch.int64), torch.arange(4)))
    found = match_statistics(axes, axes, kept_feature=Matches(cells, key, torch.zeros(2, 4)))
    assert found["feature_duplicates"].item() == pytest.approx((3 / 4 + 0) / 2)
    assert found["feature_pixels"].item() == pytest.approx((0 + 2 + 4 + 6) / 8)


def test_agreement_by_hand() -> None:
    """Cells on the diagonal are within one; the next row's first cell is not within one of a row's last."""
    axes = cell_axes(torch.tensor([[0.0, 0.0, 3.0, 3.0]]), 3, 3)
    location = torch.tensor([[0, 0, 2, 2, 4, 5, 6, 7, 8]])
    feature = torch.tensor([[0, 4, 3, 8, 0, 4, 2, 6, 8]])
    nothing = torch.zeros(1, 9)
    found = match_statistics(axes, axes, location=Nearest(location, nothing), feature=Nearest(feature, nothing))
    assert found["agreement"].item() == pytest.approx(2 / 9)
    assert found["agreement_1"].item() == pytest.approx(6 / 9)


def test_disjoint_crops() -> None:
    """No pair overlaps, distances are large, and there is no cell on which L_s and L_d could agree."""
    box = random_boxes(4, seed=7)
    query, key = cell_axes(box, 7, 7), cell_axes(box + 1000, 3, 3)
    location, feature = nearest_locations(query, key), random_features(query, key, noise=1.0)
    found = match_statistics(
        query,
        key,
        location=location,
        feature=feature,
        kept_location=top_gamma(location, 20),
        kept_feature=top_gamma(feature, 4),
    )
    assert found["location_overlap"].item() == 0
    assert found["location_pixels"].item() > 1000
    for name in AGREEMENT:
        assert found[name].isnan()


def test_agreement_counts_only_cells_inside_the_other_crop() -> None:
    """The batch's second image is disjoint: agreement is that of the first alone."""
    box = torch.tensor([[0.0, 0.0, 60.0, 60.0]] * 2)
    other = torch.tensor([[0.0, 0.0, 60.0, 60.0], [500.0, 500.0, 560.0, 560.0]])
    query, key = cell_axes(box, 3, 3), cell_axes(other, 3, 3)
    location = nearest_locations(query, key)
    wrong = location.key.clone()
    wrong[1] = 5
    found = match_statistics(query, key, location=location, feature=Nearest(wrong, location.distance))
    assert found["agreement"].item() == 1


def test_kinds_that_are_none_are_left_out() -> None:
    axes = cell_axes(random_boxes(3, seed=8), 3, 3)
    nearest = nearest_locations(axes, axes)
    kept = top_gamma(nearest, 4)
    assert match_statistics(axes, axes) == {}
    assert set(match_statistics(axes, axes, location=nearest, kept_location=kept)) == LOCATION
    assert set(match_statistics(axes, axes, feature=nearest, kept_feature=kept)) == FEATURE
    assert set(match_statistics(axes, axes, location=nearest, feature=nearest)) == AGREEMENT


def test_bad_shapes_are_named() -> None:
    axes, fewer = (cell_axes(random_boxes(n, seed=9), 3, 3) for n in (4, 3))

    def matches(batch: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.zeros(batch, count, dtype=torch.int64),
            torch.zeros(batch, count, dtype=torch.int64),
            torch.zeros(batch, count),
        )

    with pytest.raises(ValueError, match=r"key cells: y \(3, 3\)"):
        match_statistics(axes, fewer)
    with pytest.raises(ValueError, match=r"matches query \(3, 5\).*B 4"):
        match_statistics(axes, axes, kept_location=Matches(*matches(3, 5)))
    good, bad = Nearest(*matches(4, 9)[1:]), Nearest(*matches(4, 8)[1:])
    with pytest.raises(ValueError, match=r"nearest by feature is \(4, 8\); expected \(4, 9\), the query cells"):
        match_statistics(axes, axes, location=good, feature=bad)
