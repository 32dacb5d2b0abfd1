"""NT-Xent against a brute-force float64 loop over SimCLR's Eq. 1, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_toolkit.criteria import ContrastiveCriterion, NonFiniteError, nt_xent
from ssl_toolkit.criteria.ntxent import Pair, contrast


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
    assert ContrastiveCriterion(0.2).views(z, 2).terms["contrastive"].item() == pytest.approx(expected)


@pytest.mark.parametrize("views", [2, 4])
def test_gradients_of_all_views_are_right(views: int) -> None:
    generator = torch.Generator().manual_seed(5)
    z = [torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(views)]
    assert torch.autograd.gradcheck(lambda *e: ContrastiveCriterion(0.5).views(e, 2).total, z)


@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.024, 0.003])
def test_float32_holds_at_every_temperature(temperature: float) -> None:
    generator = torch.Generator().manual_seed(6)
    x, y = (torch.randn(64, 32, generator=generator) for _ in range(2))
    y = x + 0.5 * y
    x[0] = -x[1]  # a cosine of nearly -1, whose exponential is 0 in float32
    logits = torch.nn.functional.normalize(torch.cat((x, y)).double(), dim=1)
    logits = logits @ logits.T / temperature
    logits.fill_diagonal_(-torch.inf)
    targets = torch.cat((torch.arange(64, 128), torch.arange(64)))
    expected = torch.nn.functional.cross_entropy(logits, targets).item()
    assert nt_xent(x, y, temperature).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("per_process", [1, 2, 3])
def test_shares_of_rows_add_up(per_process: int) -> None:
    generator = torch.Generator().manual_seed(7)
    views = [torch.randn(2, 6, 5, dtype=torch.float64, generator=generator) for _ in range(3)]
    pairs = [Pair(0, 1, 0.5), Pair(0, 2, 0.2), Pair(1, 2, 0.3)]
    whole = contrast(views, pairs, 0.3)
    alone = [contrast([views[m], views[k]], [Pair(0, 1, weight)], 0.3).value for m, k, weight in pairs]
    torch.testing.assert_close(whole.value, torch.stack(alone).sum(dim=0))
    shares: list[Tensor] = []

    def remember(own: Tensor) -> Tensor:
        shares.append(own)
        return own.new_ones(*own.shape[:-1], 6)

    slices = [slice(start, start + per_process) for start in range(0, 6, per_process)]
    for rows in slices:
        contrast(views, pairs, 0.3, rows=rows, join=remember)
    joined = torch.cat(shares, dim=-1)
    parts = [contrast(views, pairs, 0.3, rows=rows, join=lambda _: joined) for rows in slices]
    torch.testing.assert_close(sum(p.value for p in parts), whole.value)
    for v in range(3):
        torch.testing.assert_close(torch.cat([p.gradients[v] for p in parts], dim=1), whole.gradients[v])


def test_emphasis_leaves_pairs_out_but_keeps_them_as_negatives() -> None:
    generator = torch.Generator().manual_seed(8)
    pairs = torch.randn(2, 1, 4, 3, dtype=torch.float64, generator=generator)
    emphasis = torch.tensor([[2.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    found = ContrastiveCriterion(0.3).groups(pairs, emphasis=emphasis).terms["contrastive"].item()
    z = [*pairs[0, 0], *pairs[1, 0]]

    def anchor(i: int) -> float:
        cosine = [torch.cosine_similarity(z[i], other, dim=0).item() / 0.3 for other in z]
        return math.log(sum(math.exp(c) for k, c in enumerate(cosine) if k != i)) - cosine[(i + 4) % 8]

    expected = sum(w * (anchor(i) + anchor(i + 4)) / 2 for i, w in enumerate((2, 0, 1, 1))) / 4
    assert found == pytest.approx(expected)


def test_groups_are_summed_and_float32() -> None:
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(3, 5, 4, generator=generator).bfloat16() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = nt_xent(x, y, 0.2)
    assert values.dtype == torch.float32
    expected = sum(loop_nt_xent(x[g].double(), y[g].double(), 0.2) for g in range(3))
    assert values.sum().item() == pytest.approx(expected, rel=1e-5)
    found = ContrastiveCriterion(0.2).groups(torch.stack((x, y)).float(), scale=7.0)
    assert found.terms["contrastive"].item() == pytest.approx(expected, rel=1e-5)


def test_a_zero_vector_has_cosine_zero_with_all() -> None:
    x, y = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    x[0] = 0
    e = math.exp(1 / 0.5)
    # x0 sees five zeros; y0 four zeros and x0; the others their positive at 1 and four zeros.
    expected = (2 * math.log(5) + 4 * (math.log(e + 4) - 2)) / 6
    assert nt_xent(x, y, 0.5).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.2, 0.01])
def test_results_have_the_inputs_precision(temperature: float, generator: torch.Generator) -> None:
    x, y = (torch.randn(4, 3, generator=generator, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        assert nt_xent(x, y, temperature).dtype == torch.float32
    assert nt_xent(x, y, temperature).dtype == torch.float32
    found = ContrastiveCriterion(temperature).groups(torch.stack((x, y)).detach()[:, None])
    assert found.terms["contrastive"].dtype == torch.float32
    assert found.gradient is not None
    assert found.gradient.dtype == torch.float32


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="N >= 2"):
        nt_xent(torch.zeros(3, 1, 4), torch.zeros(3, 1, 4), 0.2)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        nt_xent(torch.zeros(3, 4), torch.zeros(3, 5), 0.2)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"at least 0\.003"):
            nt_xent(torch.ones(3, 4), torch.ones(3, 4), temperature)
        with pytest.raises(ValueError, match=r"at least 0\.003"):
            ContrastiveCriterion(temperature)
    with pytest.raises(NonFiniteError, match=r"y of shape \(3, 4\) has 12 values"):
        nt_xent(torch.ones(3, 4), torch.full((3, 4), float("nan")), 0.2)
    with pytest.raises(NonFiniteError, match=r"embeddings\[1\] of shape \(3, 4\) has 12 values"):
        ContrastiveCriterion(0.2).views([torch.ones(3, 4), torch.full((3, 4), float("inf"))], 2)
