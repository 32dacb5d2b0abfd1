"""VICReg terms against brute-force float64 loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_toolkit.criteria import (
    NonFiniteError,
    VICRegCriterion,
    covariance,
    invariance,
    std_of,
    variance,
    view_pairs,
)
from ssl_toolkit.criteria.loss import CHUNK
from ssl_toolkit.criteria.vicreg import spread


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


@pytest.mark.parametrize(("n", "d"), [(5, 3), (4, 9), (6, 6), (2, 5)])
def test_terms_equal_loops(n: int, d: int, generator: torch.Generator) -> None:
    x = torch.randn(3, n, d, dtype=torch.float64, generator=generator) * 0.7 + 5
    y = torch.randn(3, n, d, dtype=torch.float64, generator=generator)
    for g in range(3):
        assert variance(x)[g].item() == pytest.approx(loop_variance(x[g]), rel=1e-10)
        assert covariance(x)[g].item() == pytest.approx(loop_covariance(x[g]), rel=1e-9)
        assert invariance(x, y)[g].item() == pytest.approx(loop_invariance(x[g], y[g]), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(5, 3), (4, 9), (5, 5)])
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


@pytest.mark.parametrize("sum_sides", [False, True])
@pytest.mark.parametrize("views", [2, 4])
def test_many_views_equal_the_sum_over_pairs(views: int, sum_sides: bool, generator: torch.Generator) -> None:
    z = [torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(views)]
    terms = VICRegCriterion(25, 25, 1, sum_sides=sum_sides).views(z, num_large=2).terms
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


def textbook_spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """By autograd, through the D x D matrix."""
    centred = x - x.mean(dim=-2, keepdim=True)
    matrix = centred.mT @ centred / (x.shape[-2] - 1)
    diagonal = torch.diagonal(matrix, dim1=-2, dim2=-1)
    var = torch.relu(1 - (diagonal + 1e-4).sqrt()).mean(dim=-1)
    return var, (matrix.square().sum(dim=(-2, -1)) - diagonal.square().sum(dim=-1)) / x.shape[-1]


@pytest.mark.parametrize(("n", "d"), [(6, 3), (6, 40)])
@pytest.mark.parametrize("per_process", [1, 2, 3, 6])
def test_shares_of_rows_add_up(n: int, d: int, per_process: int, generator: torch.Generator) -> None:
    x = torch.randn(2, n, d, dtype=torch.float64, generator=generator, requires_grad=True)
    var, cov = textbook_spread(x)
    (expected,) = torch.autograd.grad((3 * var + 5 * cov).sum(), x)
    parts = [spread(x.detach(), 3.0, 5.0, rows=slice(start, start + per_process)) for start in range(0, n, per_process)]
    torch.testing.assert_close(sum(p.variance for p in parts), var.detach())
    torch.testing.assert_close(sum(p.covariance for p in parts), cov.detach())
    torch.testing.assert_close(torch.cat([p.gradient for p in parts if p.gradient is not None], dim=1), expected)


def test_nothing_is_computed_for_gradients_that_nobody_wants(generator: torch.Generator) -> None:
    z = [torch.randn(4, 9, generator=generator, requires_grad=True) for _ in range(2)]
    with torch.no_grad():
        loss = VICRegCriterion().views(z, 2)
        assert not covariance(z[0]).requires_grad
    assert not loss.total.requires_grad
    assert spread(z[0][None].detach(), 1.0, 1.0, gradient=False).gradient is None


def test_the_gradient_takes_the_losss_weight_and_may_be_asked_for_twice(generator: torch.Generator) -> None:
    z = [torch.randn(4, 9, generator=generator, requires_grad=True) for _ in range(2)]
    total = VICRegCriterion().views(z, 2).total
    plain = torch.autograd.grad(total, z, retain_graph=True)
    scaled = torch.autograd.grad(1024 * total, z)
    for a, b in zip(plain, scaled):
        torch.testing.assert_close(1024 * a, b)


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("sum_sides", [False, True])
def test_gradients_of_all_views_are_right(views: int, sum_sides: bool, generator: torch.Generator) -> None:
    z = [torch.randn(4, 6, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(views)]
    criterion = VICRegCriterion(2, 3, 5, sum_sides=sum_sides)
    assert torch.autograd.gradcheck(lambda *e: criterion.views(e, 2).total, z)


def test_groups_are_the_terms_summed(generator: torch.Generator) -> None:
    pairs = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    halves = VICRegCriterion(2, 3, 5).groups(pairs).terms
    sums = VICRegCriterion(2, 3, 5, sum_sides=True).groups(pairs).terms
    cov = sum(loop_covariance(x) for x in pairs.flatten(0, 1))
    inv = sum(loop_invariance(pairs[0, g], pairs[1, g]) for g in range(3))
    assert halves["covariance"].item() == pytest.approx(5 * cov / 2)
    assert sums["covariance"].item() == pytest.approx(5 * cov)
    assert sums["variance"].item() == pytest.approx(2 * halves["variance"].item())
    assert sums["invariance"].item() == pytest.approx(halves["invariance"].item()) == pytest.approx(2 * inv)


def test_a_term_of_weight_zero_is_left_out() -> None:
    z = [torch.randn(6, 3) for _ in range(2)]
    assert set(VICRegCriterion(1, 0, 0).views(z, 2).terms) == {"invariance"}
    assert set(VICRegCriterion(1, 1, 0).views(z, 2).terms) == {"invariance", "variance"}
    assert set(VICRegCriterion(0, 1, 1).views(z, 2).terms) == {"variance", "covariance"}


def test_statistics_are_float32_under_autocast() -> None:
    x = (torch.randn(8, 16) * 300).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = VICRegCriterion().views([x, x.flip(0)], 2)
        alone = covariance(x)
    reference = VICRegCriterion().views([x.double(), x.flip(0).double()], 2)
    assert alone.item() == pytest.approx(covariance(x.double()).item(), rel=1e-5)
    for name, value in loss.terms.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(reference.terms[name].item(), rel=1e-5)


def test_invariance_is_float32(generator: torch.Generator) -> None:
    x, y = (torch.randn(8, 16, generator=generator).bfloat16() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = invariance(x, y)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loop_invariance(x.double(), y.double()), rel=1e-5)


def test_std_is_over_the_batch(generator: torch.Generator) -> None:
    x = torch.randn(2, 5, 3, generator=generator) * torch.tensor([1.0, 10.0, 100.0])
    x = x + torch.tensor([0.0, 50.0, -500.0])
    expected = [sum(x[g, :, j].std().item() for j in range(3)) / 3 for g in range(2)]
    assert std_of(x).tolist() == pytest.approx(expected)
    assert std_of(x[0, :1].expand(5, 3)).item() == 0


def test_second_derivatives_are_refused(generator: torch.Generator) -> None:
    z = [torch.randn(4, 9, generator=generator, requires_grad=True) for _ in range(2)]
    total = VICRegCriterion().views(z, 2).total
    first = torch.autograd.grad(total.square(), z[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("sum_sides", [False, True])
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 1.0), (2.5, 1.0), (1.0, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("layout", ["contiguous", "swapped"])
def test_each_sides_statistics_count_as_often_as_asked(
    sum_sides: bool, times: tuple[float, float], layout: str, generator: torch.Generator
) -> None:
    pairs = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    if layout == "swapped":
        pairs = pairs.transpose(0, 1).contiguous().transpose(0, 1)
    emphasis = torch.rand(3, 5, dtype=torch.float64, generator=generator)
    found = VICRegCriterion(2, 3, 5, sum_sides).groups(pairs, scale=0.7, times=times, emphasis=emphasis)
    leaf = pairs.clone().requires_grad_()
    var, cov = textbook_spread(leaf)
    share = 1.0 if sum_sides else 0.5
    counts = share * torch.tensor([[t] for t in times], dtype=torch.float64)
    pulled = 2 * ((leaf[0] - leaf[1]).square().mean(dim=-1) * emphasis).mean(dim=-1).sum()
    expected = {"invariance": pulled, "variance": 3 * (counts * var).sum(), "covariance": 5 * (counts * cov).sum()}
    for name, value in expected.items():
        assert found.terms[name].item() == pytest.approx(value.item()), name
    (gradient,) = torch.autograd.grad(0.7 * sum(expected.values()), leaf)
    torch.testing.assert_close(found.gradient, gradient)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9])
def test_invariance_does_not_depend_on_the_chunks(
    rows: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK, "cpu", rows * 3 * 4 * 8)  # 3 views of D 4 in float64
    z = [torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(3)]
    total = VICRegCriterion(1, 0, 0).views(z, 2).total
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    expected = sum((z[m] - z[n]).square().mean() for m, n in pairs) / len(pairs)
    torch.testing.assert_close(total, expected)
    for found, right in zip(torch.autograd.grad(total, z), torch.autograd.grad(expected, z)):
        torch.testing.assert_close(found, right)


NAN = torch.tensor([[0.0, 1.0], [float("nan"), 2.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    ("z", "message"),
    [
        ([torch.zeros(1, 4)] * 2, r"global batch of 2 or more, not \[\(1, 4\), \(1, 4\)\]"),
        ([torch.zeros(3, 4), torch.zeros(3, 5)], r"share a shape \(B, D\), not \[\(3, 4\), \(3, 5\)\]"),
        ([torch.zeros(3, 4)], "two views or more"),
        ([torch.zeros(3, 4, dtype=torch.int64)] * 2, "floating point"),
        ([torch.zeros(3, 2), NAN], r"embeddings\[1\] of shape \(3, 2\) has 1 values that are not finite"),
        ([torch.randn(3, 2) * 1e30] * 2, r"embeddings\[0\] of shape .* the loss overflows"),
    ],
)
def test_bad_embeddings_are_named(z: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VICRegCriterion().views(z, 2)


def test_bad_groups_are_named() -> None:
    with pytest.raises(ValueError, match=r"x: batch statistics need N >= 2 vectors, not 1 \(shape \(3, 1, 4\)\)"):
        variance(torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match=r"\(\.\.\., N, D\)"):
        covariance(torch.zeros(4))
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        invariance(torch.zeros(3, 4), torch.zeros(3, 5))
    for function in (variance, covariance, lambda x: invariance(x, x)):
        with pytest.raises(NonFiniteError, match=r"x of shape \(3, 2\) has 1 values"):
            function(NAN)


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 1, 1)])
def test_bad_weights_are_named(weights: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must not be negative, nor all 0"):
        VICRegCriterion(*weights)


@pytest.mark.parametrize("num_large", [0, 3])
def test_the_number_of_large_views_is_checked(num_large: int) -> None:
    with pytest.raises(ValueError, match=rf"one of them large, not {num_large} of"):
        VICRegCriterion().views([torch.randn(3, 4)] * 2, num_large)
