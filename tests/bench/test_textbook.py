"""The textbook losses against loops, against lightly, and against ours: a bench must compare the same maths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_toolkit.bench import lightly_losses, textbook
from ssl_toolkit.bench.criterion import (
    CaseConfig,
    CriterionConfig,
    Inputs,
    global_comparison,
    local_comparison,
    make_inputs,
    reduced,
)
from ssl_toolkit.bench.report import agreement
from ssl_toolkit.criteria import ContrastiveCriterion

CPU = torch.device("cpu")
CASES = {
    "two views": CaseConfig(batch=6, dim=10, local_dim=5, large_map=[3, 4], gammas=[7, 7]),
    "multi-crop": CaseConfig(batch=5, dim=9, local_dim=4, small=2, large_map=[3, 3], small_map=[2, 3], gammas=[5, 2]),
}


def inputs_of(name: str) -> Inputs:
    return make_inputs(CASES[name], seed=3, device=CPU, dtype=torch.float64)


def loop_spread(x: Tensor) -> tuple[float, float]:
    """Variance and covariance terms of (N, D), entry by entry."""
    n, d = x.shape
    mean = [sum(float(x[i, k]) for i in range(n)) / n for k in range(d)]

    def cov(k: int, m: int) -> float:
        return sum((float(x[i, k]) - mean[k]) * (float(x[i, m]) - mean[m]) for i in range(n)) / (n - 1)

    variance = sum(max(0.0, 1 - (cov(k, k) + 1e-4) ** 0.5) for k in range(d)) / d
    return variance, sum(cov(k, m) ** 2 for k in range(d) for m in range(d) if k != m) / d


def loop_pair(x: Tensor, y: Tensor) -> float:
    """VICReg of one slot's pairs (N, D), both sides' variance and covariance averaged."""
    (vx, cx), (vy, cy) = loop_spread(x), loop_spread(y)
    invariance = sum(float(d) ** 2 for d in (x - y).flatten()) / x.numel()
    return 25 * invariance + 25 * (vx + vy) / 2 + (cx + cy) / 2


def loop_direction(x: Tensor, y: Tensor, place_x: Tensor, place_y: Tensor, gamma: int) -> float:
    """Match each image cell by cell, sort by distance, compare slot by slot."""
    picked: list[list[tuple[int, int]]] = []
    for image_x, image_y in zip(place_x, place_y):
        found = []
        for p, point in enumerate(image_x):
            distances = [float((point - other).square().sum()) for other in image_y]
            best = min(range(len(distances)), key=distances.__getitem__)
            found.append((distances[best], p, best))
        picked.append([(p, q) for _, p, q in sorted(found)[:gamma]])
    losses = []
    for slot in range(gamma):
        a = torch.stack([x[b, picked[b][slot][0]] for b in range(len(x))])
        c = torch.stack([y[b, picked[b][slot][1]] for b in range(len(x))])
        losses.append(loop_pair(a, c))
    return sum(losses) / gamma


@pytest.mark.parametrize("name", CASES)
def test_global_is_the_loop_over_views_and_entries(name: str) -> None:
    embeddings, large = inputs_of(name).embeddings, CASES[name].large
    pairs = [(m, n) for m in range(large) for n in range(len(embeddings)) if n != m]
    squares = [float((embeddings[m] - embeddings[n]).square().sum()) / embeddings[m].numel() for m, n in pairs]
    spreads = [loop_spread(e) for e in embeddings]
    expected = 25 * sum(squares) / len(squares)
    expected += sum(25 * v + c for v, c in spreads) / len(spreads)
    assert float(textbook.vicreg_global(embeddings, large)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_local_is_the_loop_over_pairs_directions_and_slots(name: str) -> None:
    case, inputs = CASES[name], inputs_of(name)
    vectors, points = inputs.vectors, [a.points() for a in inputs.axes]
    pairs = [(m, n) for m in range(case.large) for n in range(len(vectors)) if n != m]
    expected = 0.0
    for m, n in pairs:
        for place in (vectors, points):
            there = loop_direction(vectors[m], vectors[n], place[m], place[n], case.gammas[0])
            back = loop_direction(vectors[n], vectors[m], place[n], place[m], case.gammas[1])
            expected += (there + back) / 2 / len(pairs)
    gammas = (case.gammas[0], case.gammas[1])
    assert float(textbook.vicregl_local(vectors, points, case.large, gammas)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("part", [global_comparison, local_comparison])
def test_all_contenders_of_a_row_do_the_same_maths(name: str, part: object) -> None:
    absent = lightly_losses.missing()
    comparison = part("X", CASES[name], inputs_of(name), absent)  # type: ignore[operator]
    reference = comparison.contenders[0].call(comparison.contenders[0].prepare())
    checked = [c for c in comparison.contenders[1:] if c.same_maths and not c.absent]
    assert [c.name for c in checked] == ["textbook", *([] if absent else ["lightly"])]
    for contender in checked:
        found = agreement(contender.call(contender.prepare()), reference)
        assert found.value < 1e-12, contender.name
        assert found.gradient < 1e-11, contender.name


def test_nt_xent_is_ours_and_lightlys() -> None:
    x, y = make_inputs(CaseConfig(batch=7, dim=5), 0, CPU, torch.float64).embeddings
    n, z = 7, torch.nn.functional.normalize(torch.cat((x, y)), dim=1)
    total = 0.0
    for i in range(2 * n):
        logits = {j: float(z[i] @ z[j]) / 0.1 for j in range(2 * n) if j != i}
        total += (
            torch.tensor(list(logits.values()), dtype=torch.float64).logsumexp(0).item() - logits[(i + n) % (2 * n)]
        )
    expected = pytest.approx(total / (2 * n), rel=1e-12)
    assert float(textbook.nt_xent(x, y, 0.1)) == expected
    assert float(ContrastiveCriterion(0.1).views([x, y], 2).total) == expected
    if not lightly_losses.missing():
        assert float(lightly_losses.nt_xent(0.1)(x, y)) == expected


def test_lightly_takes_the_grid_we_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances of cells between two views are those of our centres, cell by cell in raster order."""
    pytest.importorskip("lightly")
    case, inputs = CASES["multi-crop"], inputs_of("multi-crop")
    points, seen = [a.points() for a in inputs.axes], []
    original = torch.cdist

    def spy(a: Tensor, b: Tensor) -> Tensor:
        if a.shape[-1] == 2:
            seen.append((a, b))
        return original(a, b)

    monkeypatch.setattr(torch, "cdist", spy)
    lightly_losses.vicregl_local(points, case.map_sizes(), case.large, (5, 2))(inputs.vectors)
    pairs = [(m, n) for m in range(2) for n in range(4) if n != m]
    expected = [both for m, n in pairs for both in ((points[m], points[n]), (points[n], points[m]))]
    assert len(seen) == len(expected)
    for (a, b), (c, d) in zip(seen, expected):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_inputs_exercise_every_term() -> None:
    """Deviations on both sides of the hinge, boxes that overlap or not, flips, and no ties among distances."""
    case = CaseConfig(batch=64, dim=64, local_dim=32, small=1, gammas=[20, 4])
    inputs = make_inputs(case, 0, CPU)
    deviations = inputs.embeddings[0].std(dim=0)
    assert 0.2 < float((deviations < 1).float().mean()) < 0.8
    flipped = inputs.axes[0].x[:, 0] > inputs.axes[0].x[:, -1]
    assert flipped.any()
    assert not flipped.all()
    nearest = torch.cdist(inputs.axes[0].points().double(), inputs.axes[1].points().double()).min(dim=2).values
    gaps = nearest.sort(dim=1).values.diff(dim=1)
    assert float((gaps == 0).float().mean()) < 1e-3


@pytest.mark.parametrize("case", CriterionConfig().sizes.values(), ids="ABC")
def test_the_float64_check_takes_the_same_way_to_the_covariance(case: CaseConfig) -> None:
    small = reduced(case)
    assert small.batch * small.dim * small.local_dim < 12 * 48 * 48 + 1
    assert (small.map_sizes(), small.gammas) == (case.map_sizes(), case.gammas)
    for key in ("dim", "local_dim"):
        assert (small.batch < getattr(small, key)) == (case.batch < getattr(case, key)), key


def test_a_case_that_cannot_be_is_refused() -> None:
    for options, message in (
        ({"batch": 1}, "batch of a case must be at least 2"),
        ({"large": 1}, "two views"),
        ({"gammas": [20]}, "gammas of a case must be two positive numbers"),
        ({"gammas": [50, 4]}, "above the cells"),
        ({"small": 1, "gammas": [20, 10]}, "above the cells"),
        ({"large_map": [0, 7]}, "large_map"),
    ):
        with pytest.raises(ValueError, match=message):
            CaseConfig(**options)  # type: ignore[arg-type]
