"""The local criterion against loops over pairs, directions, cells and slots, for every preset."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_toolkit.criteria import ContrastiveCriterion, Criterion, VICRegCriterion
from ssl_toolkit.errors import UserError
from ssl_toolkit.matching import cell_axes
from ssl_toolkit.methods.local import PRESETS, CellMap, LocalConfig, LocalCriterion, resolve
from ssl_toolkit.registry import typed

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


def centres(box: list[float], flip: bool, size: tuple[int, int]) -> list[tuple[float, float]]:
    x0, y0, x1, y1 = box
    h, w = size
    return [
        (y0 + (r + 0.5) * (y1 - y0) / h, x0 + ((w - 1 - c if flip else c) + 0.5) * (x1 - x0) / w)
        for r in range(h)
        for c in range(w)
    ]


def loop_loss(maps: Maps, preset: str, criterion: Criterion, kinds: list[str]) -> float:
    """Literal sums: ordered pairs, two directions, every cell by brute force, the criterion on stacked slots."""
    values = PRESETS[preset]
    large = sum(m[4] for m in maps)
    ordered = [(m, n) for m in range(large) for n in range(len(maps)) if m != n]
    result = 0.0
    for m, n in ordered:
        for kind in kinds:
            gammas = values["gamma" if kind == "location" else "feature_gamma"]
            for argument, (i, j) in enumerate(((m, n), (n, m))):
                (x, boxes, flips, size, is_large), (y, other_boxes, other_flips, other_size, _) = (
                    maps[i],
                    maps[j],
                )
                first = is_large if values["gamma_by"] == "size" else argument == 0
                gamma = gammas[0 if first else 1]
                cells = x.shape[1]
                keep = cells if gamma == 0 else round(gamma * cells) if gamma < 1 else min(int(gamma), cells)
                rows_x, rows_y = [], []
                for b in range(len(x)):
                    aware = values["flip_aware"]
                    here = centres(boxes[b], flips[b] and aware, size)
                    there = centres(other_boxes[b], other_flips[b] and aware, other_size)
                    scored = []
                    for p in range(cells):
                        if kind == "location":
                            distances = [math.dist(here[p], q) for q in there]
                        else:
                            distances = [(x[b, p] - v).norm().item() for v in y[b]]
                        best = min(range(len(distances)), key=distances.__getitem__)
                        scored.append((distances[best], p, best))
                    kept = sorted(sorted(scored)[:keep], key=lambda s: s[1])
                    rows_x.append(torch.stack([x[b, p] for _, p, _ in kept]))
                    rows_y.append(torch.stack([y[b, q] for _, _, q in kept]))
                slots_x, slots_y = torch.stack(rows_x, 1), torch.stack(rows_y, 1)
                per_slot = [
                    sum(v.item() for v in criterion.groups(torch.stack((a, c))[:, None]).terms.values())
                    for a, c in zip(slots_x, slots_y)
                ]
                share = 1.0 if values["sum_directions"] else 0.5
                result += share * sum(per_slot) / len(per_slot)
    return result / len(ordered)


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
        cell_maps = [
            CellMap(
                v,
                cell_axes(torch.tensor(boxes, dtype=torch.float64), *size, torch.tensor(flips)),
                large,
            )
            for v, boxes, flips, size, large in maps
        ]
        loss = LocalCriterion(config, criterion)(cell_maps)
        assert all(name.startswith(matching) for name in loss.terms)
        assert loss.total.item() == pytest.approx(loop_loss(maps, preset, criterion, kinds), rel=1e-9)


def test_ours_keeps_the_papers_share_of_any_map() -> None:
    local = LocalCriterion(resolve(LocalConfig(), "ours"), VICRegCriterion())
    assert local.kept_pairs("location", True, 0, 49) == 20
    assert local.kept_pairs("location", False, 1, 9) == 4
    assert local.kept_pairs("location", True, 0, 36) == 15
    assert local.kept_pairs("location", True, 0, 1) == 1
    assert local.kept_pairs("feature", True, 0, 49) is None


def test_weights_and_switches_are_independent() -> None:
    maps = make_maps([(4, 4), (4, 4)], 2)
    cell_maps = [
        CellMap(v, cell_axes(torch.tensor(boxes, dtype=torch.float64), *size, torch.tensor(flips)), large)
        for v, boxes, flips, size, large in maps
    ]

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
