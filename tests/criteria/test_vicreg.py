"""VICReg terms against brute-force float64 loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_toolkit.criteria import (
    VICRegCriterion,
    covariance,
    invariance,
    variance,
    variance_covariance,
    view_pairs,
)


def loop_variance(x: Tensor) -> float:
    n, d = x.shape
    total = 0.0
    for j in range(d):
        mean = sum(x[i, j].item() for i in range(n)) / n
        var = sum((x[i, j].item() - mean) ** 2 for i in range(n)) / (n - 1)
        total += max(0.0, 1 - math.sqrt(var + 1e-4))
    return total / d


def loop_covariance(x: Tensor) -> float:
    n, d = x.shape
    means = [sum(x[i, j].item() for i in range(n)) / n for j in range(d)]
    total = 0.0
    for j in range(d):
        for k in range(d):
            if j != k:
                c = sum((x[i, j].item() - means[j]) * (x[i, k].item() - means[k]) for i in range(n)) / (n - 1)
                total += c * c
    return total / d


def loop_invariance(x: Tensor, y: Tensor) -> float:
    n, d = x.shape
    return sum((x[i, j].item() - y[i, j].item()) ** 2 for i in range(n) for j in range(d)) / (n * d)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("n", "d"), [(5, 3), (4, 9), (6, 6), (2, 5)])
def test_terms_equal_loops(n: int, d: int, generator: torch.Generator) -> None:
    x = torch.randn(3, n, d, dtype=torch.float64, generator=generator) * 0.7 + 5
    y = torch.randn(3, n, d, dtype=torch.float64, generator=generator)
    for g in range(3):
        assert variance(x)[g].item() == pytest.approx(loop_variance(x[g]), rel=1e-10)
        assert covariance(x)[g].item() == pytest.approx(loop_covariance(x[g]), rel=1e-9)
        assert invariance(x, y)[g].item() == pytest.approx(loop_invariance(x[g], y[g]), rel=1e-12)
    both = variance_covariance(x)
    assert torch.equal(both[0], variance(x))
    assert torch.equal(both[1], covariance(x))


@pytest.mark.parametrize(("n", "d"), [(5, 3), (4, 9)])
def test_gradients_are_right(n: int, d: int, generator: torch.Generator) -> None:
    x = torch.randn(2, n, d, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(2, n, d, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: covariance(a), x)
    assert torch.autograd.gradcheck(lambda a: variance(a), x)
    assert torch.autograd.gradcheck(invariance, (x, y))


def test_closed_forms() -> None:
    column = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # variance 2
    assert variance(column).item() == 0.0
    assert variance(torch.zeros(4, 3, dtype=torch.float64)).item() == pytest.approx(1 - 0.01)
    twice = column.expand(2, 2)  # two equal dimensions: off-diagonal entries are the variance
    assert covariance(twice).item() == pytest.approx((2**2 + 2**2) / 2)
    assert covariance(torch.randn(7, 1)).item() == pytest.approx(0.0, abs=1e-6)


def test_gram_form_holds_in_float32_at_full_width(generator: torch.Generator) -> None:
    x = torch.randn(64, 2048, generator=generator)
    exact = x.double() - x.double().mean(0)
    matrix = exact.T @ exact / 63
    expected = (matrix.square().sum() - matrix.diagonal().square().sum()) / 2048
    assert covariance(x).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("sum_sides", [False, True])
@pytest.mark.parametrize("views", [2, 4])
def test_many_views_equal_the_sum_over_pairs(views: int, sum_sides: bool, generator: torch.Generator) -> None:
    z = [torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(views)]
    terms = VICRegCriterion(25, 25, 1, sum_sides=sum_sides).views(z, num_large=2)
    pairs = [(m, n) for m in range(2) for n in range(views) if m != n]
    assert pairs == view_pairs(views, 2)
    inv = sum(loop_invariance(z[m], z[n]) for m, n in pairs) / len(pairs)
    if sum_sides:
        var = sum(loop_variance(z[m]) + loop_variance(z[n]) for m, n in pairs) / len(pairs)
        cov = sum(loop_covariance(z[m]) + loop_covariance(z[n]) for m, n in pairs) / len(pairs)
    else:
        var = sum(map(loop_variance, z)) / views
        cov = sum(map(loop_covariance, z)) / views
    assert terms["invariance"].item() == pytest.approx(25 * inv)
    assert terms["variance"].item() == pytest.approx(25 * var)
    assert terms["covariance"].item() == pytest.approx(cov)


def test_matched_slots_are_averaged(generator: torch.Generator) -> None:
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    halves = VICRegCriterion(2, 3, 5).pair(x, y)
    sums = VICRegCriterion(2, 3, 5, sum_sides=True).pair(x, y)
    cov = sum(loop_covariance(x[g]) + loop_covariance(y[g]) for g in range(3)) / 3
    assert halves["covariance"].item() == pytest.approx(5 * cov / 2)
    assert sums["covariance"].item() == pytest.approx(5 * cov)
    assert sums["variance"].item() == pytest.approx(2 * halves["variance"].item())
    assert sums["invariance"].item() == pytest.approx(halves["invariance"].item())


def test_a_term_of_weight_zero_is_left_out() -> None:
    x, y = torch.randn(2, 6, 3), torch.randn(2, 6, 3)
    assert set(VICRegCriterion(1, 0, 0).pair(x, y)) == {"invariance"}
    assert set(VICRegCriterion(1, 1, 0).views([x[0], y[0]], 2)) == {"invariance", "variance"}


def test_statistics_are_float32_under_autocast() -> None:
    x = (torch.randn(1, 8, 16) * 300).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = VICRegCriterion().pair(x, x.flip(1))
    reference = VICRegCriterion().pair(x.double(), x.flip(1).double())
    for name, value in terms.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(reference[name].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(1, 4), "N >= 2 vectors, not 1"),
        (torch.zeros(3, 4), torch.zeros(3, 5), r"\(3, 4\) and \(3, 5\)"),
        (torch.zeros(4), torch.zeros(4), r"\(\.\.\., N, D\)"),
    ],
)
def test_bad_shapes_are_named(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VICRegCriterion().pair(x, y)
