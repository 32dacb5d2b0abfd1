"""NT-Xent against a brute-force float64 loop over SimCLR's Eq. 1, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_toolkit.criteria import ContrastiveCriterion, nt_xent


def loop_nt_xent(x: Tensor, y: Tensor, temperature: float) -> float:
    z = [*x, *y]
    n = len(x)

    def similarity(a: Tensor, b: Tensor) -> float:
        return (a @ b / (a.norm() * b.norm())).item() / temperature

    total = 0.0
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        denominator = sum(math.exp(similarity(z[i], z[k])) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(similarity(z[i], z[positive])) / denominator)
    return total / (2 * n)


def test_groups_equal_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    values = nt_xent(x, y, 0.3)
    assert values.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert values[i, j].item() == pytest.approx(loop_nt_xent(x[i, j], y[i, j], 0.3), rel=1e-10)


def test_gradient_is_right() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (x, y))


def test_closed_form_of_orthogonal_pairs() -> None:
    # N orthogonal directions, both views equal: one positive at similarity 1, 2N - 2 negatives at 0.
    n, temperature = 4, 0.5
    x = torch.eye(n, dtype=torch.float64)
    expected = math.log(math.exp(1 / temperature) + 2 * n - 2) - 1 / temperature
    assert nt_xent(x, x, temperature).item() == pytest.approx(expected)


def test_many_views_equal_the_mean_over_ordered_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    z = [torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(4)]
    pairs = [(m, n) for m in range(2) for n in range(4) if m != n]
    expected = sum(loop_nt_xent(z[m], z[n], 0.2) for m, n in pairs) / len(pairs)
    assert ContrastiveCriterion(0.2).views(z, 2)["contrastive"].item() == pytest.approx(expected)


def test_matched_slots_are_averaged_and_float32() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 5, 4, generator=generator).bfloat16()
    y = torch.randn(3, 5, 4, generator=generator).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ContrastiveCriterion(0.2).pair(x, y)["contrastive"]
    assert value.dtype == torch.float32
    expected = sum(loop_nt_xent(x[g].double(), y[g].double(), 0.2) for g in range(3)) / 3
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="N >= 2"):
        ContrastiveCriterion(0.2).pair(torch.zeros(3, 1, 4), torch.zeros(3, 1, 4))
