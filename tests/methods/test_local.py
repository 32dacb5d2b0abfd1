"""The local criterion against loops over pairs, directions, cells and slots, for every preset."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_toolkit.criteria import ContrastiveCriterion, Criterion, VICRegCriterion
from ssl_toolkit.errors import UserError
from ssl_toolkit.matching import cell_axes
from ssl_toolkit.methods.local import PRESETS, CellMap, LocalConfig, LocalCriterion, resolve
from ssl_toolkit.registry import typed
from tests.helpers import random_batch

Maps = list[tuple[Tensor, list[list[float]], list[bool], tuple[int, int], bool]]


def make_maps(sides: list[tuple[int, int]], num_large: int, batch: int = 3, channels: int = 4) -> Maps:
    generator = torch.Generator().manual_seed(7)
    maps: Maps = []
    for i, (h, w) in enumerate(sides):
        vectors = torch.randn(batch, h * w, channels, dtype=torch.float64, generator=generator)
        corner = torch.rand(batch, 2, dtype=torch.float64, generator=generator) * 50
        size = 20 + torch.rand(batch, 2, dtype=torch.float64, generator=generator) * 60
        flips = (torch.rand(batch, generator=generator) < 0.5).tolist()
        maps.append((vectors, torch.cat((corner, corner + size), 1).tolist(), flips, (h, w), i < num_large))
    return maps


def features_of(maps: Maps) -> list[Tensor]:
    """What the vectors might have been embedded from: other neighbours than theirs."""
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(*m[0].shape[:2], 6, dtype=torch.float64, generator=generator) for m in maps]


def cells_of(maps: Maps) -> list[CellMap]:
    """As methods make them."""
    return [
        CellMap(v, cell_axes(torch.tensor(boxes, dtype=torch.float64), *size, torch.tensor(flips)), large, features)
        for (v, boxes, flips, size, large), features in zip(maps, features_of(maps))
    ]


def centres(box: list[float], flip: bool, size: tuple[int, int]) -> list[tuple[float, float]]:
    x0, y0, x1, y1 = box
    h, w = size
    return [
        (y0 + (r + 0.5) * (y1 - y0) / h, x0 + ((w - 1 - c if flip else c) + 0.5) * (x1 - x0) / w)
        for r in range(h)
        for c in range(w)
    ]


def loop_loss(maps: Maps, values: dict[str, Any], criterion: Criterion, kinds: list[str]) -> float:
    """Literal sums: ordered pairs, two directions, every cell by brute force, the criterion on stacked slots."""
    large = sum(m[4] for m in maps)
    ordered = [(m, n) for m in range(large) for n in range(len(maps)) if m != n]
    searched = features_of(maps)
    result = 0.0
    for m, n in ordered:
        for kind in kinds:
            gammas = values["gamma" if kind == "location" else "feature_gamma"]
            for argument, (i, j) in enumerate(((m, n), (n, m))):
                (x, boxes, flips, size, is_large), (y, other_boxes, other_flips, other_size, _) = maps[i], maps[j]
                u, v = (searched[i], searched[j]) if values["feature_space"] == "features" else (x, y)
                first = is_large if values["gamma_by"] == "size" else argument == 0
                gamma = gammas[0 if first else 1]
                cells = x.shape[1]
                keep = cells if gamma == 0 else round(gamma * cells) if gamma < 1 else min(int(gamma), cells)
                rows_x, rows_y, near = [], [], []
                for b in range(len(x)):
                    aware = values["flip_aware"]
                    here = centres(boxes[b], flips[b] and aware, size)
                    there = centres(other_boxes[b], other_flips[b] and aware, other_size)
                    scored = []
                    for p in range(cells):
                        if kind == "location":
                            distances = [math.dist(here[p], q) for q in there]
                        else:
                            distances = [(u[b, p] - other).norm().item() for other in v[b]]
                        best = min(range(len(distances)), key=distances.__getitem__)
                        scored.append((distances[best], p, best))
                    if kind == "feature":
                        kept = [scored[p] for p in loop_order(values, scored, u[b], v[b], size[1])][:keep]
                    else:
                        kept = sorted(scored)[:keep]
                    if values["order"] == "raster":
                        kept.sort(key=lambda s: s[1])
                    diagonals = [
                        math.hypot((box[3] - box[1]) / h, (box[2] - box[0]) / w)
                        for box, (h, w) in ((boxes[b], size), (other_boxes[b], other_size))
                    ]
                    cap = values.get("max_distance" if kind == "location" else "feature_max_distance")
                    limit = (cap or math.inf) * max(diagonals)
                    near.append(
                        [
                            math.dist(here[p], there[q]) <= limit
                            and (kind == "location" or not values["mutual"] or loop_back(v[b, q], u[b]) == p)
                            for _, p, q in kept
                        ]
                    )
                    rows_x.append(torch.stack([x[b, p] for _, p, _ in kept]))
                    rows_y.append(torch.stack([y[b, q] for _, _, q in kept]))
                weights = torch.tensor(near, dtype=torch.float64)
                weights /= weights.mean().clamp_min(1 / weights.numel())
                per_slot = [
                    sum(
                        term.item()
                        for term in criterion.groups(torch.stack((a, c))[:, None], emphasis=w[None]).terms.values()
                    )
                    for a, c, w in zip(torch.stack(rows_x, 1), torch.stack(rows_y, 1), weights.T)
                ]
                share = 1.0 if values["sum_directions"] else 0.5
                result += share * sum(per_slot) / len(per_slot)
    return result / len(ordered)


def loop_back(vector: Tensor, others: Tensor) -> int:
    """The first of the vectors nearest to ``vector``."""
    distances = [(vector - other).norm().item() for other in others]
    return min(range(len(distances)), key=distances.__getitem__)


def loop_order(
    values: dict[str, Any], scored: list[tuple[float, int, int]], x: Tensor, y: Tensor, width: int
) -> list[int]:
    """Query cells, the first to be kept first."""
    rank = values.get("feature_rank", "distance")
    closest = [p for _, p, _ in sorted(scored)]
    if rank == "ratio":
        two = [sorted((x[p] - v).norm().item() for v in y)[:2] for p in range(len(x))]
        return sorted(range(len(x)), key=lambda p: two[p][0] / two[p][1])
    if rank == "spread":
        seen: dict[tuple[int, int], int] = {}
        turns = []
        for p in closest:
            block = (p // width // 2, p % width // 2)
            turns.append((seen.get(block, 0), len(turns), p))
            seen[block] = seen.get(block, 0) + 1
        return [p for _, _, p in sorted(turns)]
    return closest


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("sides", [[(7, 7), (7, 7)], [(6, 5), (6, 5), (3, 3), (3, 3)]])
@pytest.mark.parametrize("family", ["vicreg", "contrastive"])
@pytest.mark.filterwarnings("ignore:gamma")
def test_every_preset_equals_loops(preset: str, sides: list[tuple[int, int]], family: str) -> None:
    maps = make_maps(sides, num_large=2)
    criterion: Criterion = (
        VICRegCriterion(25, 25, 1, sum_sides=preset == "paper") if family == "vicreg" else ContrastiveCriterion(0.3)
    )
    for matching, kinds in (("location", ["location"]), ("feature", ["feature"])):
        config = resolve(LocalConfig(matching=matching), preset)
        loss = LocalCriterion(config, criterion)(cells_of(maps))
        assert all(name.startswith(matching) for name in loss.terms)
        assert loss.total.item() == pytest.approx(loop_loss(maps, PRESETS[preset], criterion, kinds), rel=1e-9)


def test_gammas_are_counts_shares_or_all() -> None:
    local = LocalCriterion(resolve(LocalConfig(gamma=[0.41, 0.41]), "ours"), VICRegCriterion())
    assert local.kept_pairs("location", True, 0, 49) == 20  # as the paper's, of any map
    assert local.kept_pairs("location", False, 1, 9) == 4
    assert local.kept_pairs("location", True, 0, 36) == 15
    assert local.kept_pairs("location", True, 0, 1) == 1
    assert local.kept_pairs("feature", True, 0, 49) is None
    paper = LocalCriterion(resolve(LocalConfig(), "paper"), VICRegCriterion())
    assert [paper.kept_pairs("location", large, 0, 49) for large in (True, False)] == [20, 4]


def test_weights_and_switches_are_independent() -> None:
    maps = make_maps([(4, 4), (4, 4)], 2)
    cell_maps = cells_of(maps)

    def loss(**options: Any) -> dict[str, Tensor]:
        return LocalCriterion(resolve(LocalConfig(**options), "ours"), VICRegCriterion())(cell_maps).terms

    both, location, feature = loss(), loss(matching="location"), loss(matching="feature")
    assert both.keys() == location.keys() | feature.keys()
    for name, value in {**location, **feature}.items():
        assert torch.equal(both[name], value)
    weighted = loss(location_weight=0.5, feature_weight=2.0)
    for name, value in both.items():
        factor = 0.5 if name.startswith("location") else 2.0
        assert weighted[name].item() == pytest.approx(factor * value.item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matching": "locations"}, "did you mean 'location'"),
        ({"gamma": [20]}, r"two numbers \[large, small\]"),
        ({"gamma": [2.5, 1]}, "a count, a share below 1"),
        ({"gamma": [-1, 4]}, "two numbers"),
        ({"order": "random"}, "valid: distance, raster"),
        ({"statistics": "map"}, "did you mean 'maps'"),
        ({"feature_space": "feature"}, "did you mean 'features'"),
        ({"feature_rank": "ratios"}, "did you mean 'ratio'"),
        ({"feature_max_distance": -1.0}, "local.feature_max_distance is a distance"),
        ({"feature_after": 1.0}, "local.feature_after is a share"),
        ({"feature_after": 0.5, "matching": "feature"}, "needs matching=both"),
        ({"gamma": "many"}, "local.gamma"),
        ({"gama": [20, 4]}, "did you mean 'gamma'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(LocalConfig, options, "method.local")


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'official'"):
        resolve(LocalConfig(), "offical")


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize(
    "options",
    [
        {"order": "distance"},
        {"max_distance": 0.9},
        {"order": "distance", "max_distance": 0.9, "gamma": [0.0, 0.0]},
        {"mutual": True},
        {"mutual": False},
        {"feature_space": "features", "mutual": True},
        {"feature_space": "embeddings", "mutual": False},
        {"feature_max_distance": 1.5, "mutual": True, "feature_gamma": [9.0, 3.0]},
        {"feature_rank": "ratio", "feature_gamma": [0.4, 0.5]},
        {"feature_rank": "spread", "feature_gamma": [0.4, 0.5]},
    ],
)
@pytest.mark.parametrize("family", ["vicreg", "contrastive"])
@pytest.mark.filterwarnings("ignore:gamma")
def test_every_option_equals_loops(preset: str, options: dict[str, Any], family: str) -> None:
    maps = make_maps([(4, 5), (4, 5), (3, 2)], num_large=2)
    criterion: Criterion = VICRegCriterion() if family == "vicreg" else ContrastiveCriterion(0.3)
    cell_maps = cells_of(maps)
    for kind in ("location", "feature"):
        config = resolve(LocalConfig(matching=kind, **options), preset)
        found = LocalCriterion(config, criterion)(cell_maps).total.item()
        expected = loop_loss(maps, PRESETS[preset] | options, criterion, [kind])
        assert found == pytest.approx(expected, rel=1e-9), kind


def test_cells_lie_where_the_view_says() -> None:
    batch = random_batch(sizes=(32, 32))
    found = LocalCriterion(resolve(LocalConfig(), "ours"), VICRegCriterion()).locate(batch, 1, (2, 3))
    for b in range(4):
        expected = centres(batch.views[1].box[b].tolist(), bool(batch.views[1].flip[b]), (2, 3))
        torch.testing.assert_close(found.points()[b], torch.tensor(expected))


@pytest.mark.parametrize(("preset", "pixels"), [("ours", 0.0), ("official", 20.0)])
def test_statistics_know_flips_even_where_the_matching_does_not(preset: str, pixels: float) -> None:
    """One crop twice, once mirrored: four columns of 10 pixels, whose mirror images are 30, 10, 10 and 30 away."""
    box = torch.tensor([[0.0, 0.0, 40.0, 40.0]]).expand(3, 4)
    maps = [
        CellMap(torch.randn(3, 16, 4), cell_axes(box, 4, 4, torch.full((3,), flip)), True) for flip in (False, True)
    ]
    config = resolve(LocalConfig(matching="location", gamma=[0.0, 0.0]), preset)
    _, statistics = LocalCriterion(config, VICRegCriterion()).evaluate(maps)
    assert statistics()["match_location_pixels"].item() == pytest.approx(pixels)
    assert statistics()["match_location_overlap"].item() == 1


def test_a_gamma_of_one_is_a_pair_not_all() -> None:
    local = LocalCriterion(resolve(LocalConfig(gamma=[1.0, 0.99]), "ours"), VICRegCriterion())
    assert local.kept_pairs("location", True, 0, 49) == 1
    assert local.kept_pairs("location", False, 0, 49) == 49


def test_feature_matching_can_wait() -> None:
    maps = make_maps([(4, 4), (4, 4)], 2)
    cell_maps = cells_of(maps)
    local = LocalCriterion(resolve(LocalConfig(feature_after=0.3), "ours"), VICRegCriterion())
    before, after = (local.evaluate(cell_maps, progress)[0].terms for progress in (0.29, 0.3))
    assert {name.split("_")[0] for name in before} == {"location"}
    assert {name.split("_")[0] for name in after} == {"location", "feature"}


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("kind", ["location", "feature"])
@pytest.mark.filterwarnings("ignore:gamma")
def test_statistics_of_whole_maps_equal_loops(preset: str, kind: str) -> None:
    """The pull of matched pairs alone, and variance and covariance of every position of every map over the batch."""
    maps = make_maps([(4, 5), (4, 5), (3, 2)], num_large=2)
    cell_maps = cells_of(maps)
    sums = preset == "paper"
    config = resolve(LocalConfig(matching=kind, statistics="maps", max_distance=1.0, mutual=True), preset)
    loss = LocalCriterion(config, VICRegCriterion(25, 25, 1, sum_sides=sums))(cell_maps)
    values = {**PRESETS[preset], "max_distance": 1.0, "mutual": True}
    pull = loop_loss(maps, values, VICRegCriterion(25, 0, 0), [kind])
    assert loss.terms[f"{kind}_invariance"].item() == pytest.approx(pull, rel=1e-9)
    ordered = [(m, n) for m in range(2) for n in range(3) if m != n]
    both = (1.0 if config.sum_directions else 0.5) * 2  # x and y of a pair, whichever the direction
    share = (1.0 if sums else 0.5) * both
    expected = {"variance": 0.0, "covariance": 0.0}
    for m, n in ordered:
        for view in (m, n):
            for p in range(maps[view][0].shape[1]):
                at = maps[view][0][:, p]
                cells = maps[view][0].shape[1]
                covariance = torch.cov(at.T)
                std = (covariance.diagonal() + 1e-4).sqrt()
                expected["variance"] += share * 25 * (1 - std).clamp_min(0).mean().item() / cells / len(ordered)
                off = covariance.square().sum() - covariance.diagonal().square().sum()
                expected["covariance"] += share * off.item() / at.shape[1] / cells / len(ordered)
    for name, value in expected.items():
        assert loss.terms[f"{kind}_{name}"].item() == pytest.approx(value, rel=1e-9)


def test_gradients_of_whole_maps_are_those_of_autograd() -> None:
    """Matches do not change where vectors move by little, so finite differences are exact."""
    maps = make_maps([(2, 3), (3, 2)], num_large=2, batch=4)
    axes, features = [m.axes for m in cells_of(maps)], features_of(maps)
    local = LocalCriterion(resolve(LocalConfig(statistics="maps"), "ours"), VICRegCriterion())

    def loss(*vectors: Tensor) -> Tensor:
        return local([CellMap(v, a, True, f) for v, a, f in zip(vectors, axes, features)]).total

    leaves = [m[0].clone().requires_grad_() for m in maps]
    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("mutual", [False, True])
def test_matches_by_features_compare_embeddings(mutual: bool) -> None:
    """Features that say another order than the embeddings: pairs are theirs, the loss is of the embeddings."""
    maps = make_maps([(3, 4), (4, 3)], num_large=2)
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(3, 12, 5, dtype=torch.float64, generator=generator) for _ in maps]
    config = resolve(LocalConfig(matching="feature", feature_space="features", mutual=mutual), "ours")
    cell_maps = [
        CellMap(v, cell_axes(torch.tensor(boxes, dtype=torch.float64), *size, torch.tensor(flips)), large, f)
        for (v, boxes, flips, size, large), f in zip(maps, features)
    ]
    found = LocalCriterion(config, VICRegCriterion(25, 0, 0))(cell_maps).total.item()
    expected = 0.0
    for x, y in ((0, 1), (1, 0)):
        pulls = []
        for b in range(3):
            for p in range(12):
                key = loop_back(features[x][b, p], features[y][b])
                if not mutual or loop_back(features[y][b, key], features[x][b]) == p:
                    pulls.append((maps[x][0][b, p] - maps[y][0][b, key]).square().mean().item())
        expected += 0.5 * 25 * sum(pulls) / len(pulls)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_map_without_features_is_refused() -> None:
    local = LocalCriterion(resolve(LocalConfig(), "ours"), VICRegCriterion())
    cell_maps = cells_of(make_maps([(2, 2), (2, 2)], 2))
    with pytest.raises(ValueError, match="every map needs the features"):
        local([cell_maps[0], replace(cell_maps[1], features=None)])
