"""NT-Xent, SimCLR's contrastive loss, on groups of vectors.

Source: Chen et al., "SimCLR" (ICML 2020), Eq. 1 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.criteria.loss import attach, gradient_wanted, not_finite
from ssl_toolkit.criteria.precision import full_precision, no_autocast
from ssl_toolkit.criteria.vicreg import check_pair

SMALLEST = 0.003
"""Below this temperature exp(-2 / temperature) is 0 even in float64."""
SMALLEST_FLOAT32 = 0.025
NORM_EPSILON = 1e-12


class Pair(NamedTuple):
    """Views ``first`` and ``second`` are positives of each other; ``weight`` of their loss in the sum."""

    first: int
    second: int
    weight: float


class Contrast(NamedTuple):
    """The own rows' share of the loss ``(G,)`` and its gradient ``(G, R, D)`` for each view."""

    value: Tensor
    gradients: list[Tensor]


@dataclass
class _Units:
    """Normalised vectors ``(G, N, D)`` of each view, and which rows are this process's."""

    units: list[Tensor]
    rows: slice
    whole: bool

    @property
    def own(self) -> list[Tensor]:
        """``(G, R, D)`` of each view."""
        return [u[:, self.rows] for u in self.units]

    def similar(self, a: int, b: int, temperature: float) -> Tensor:
        """``exp((cosine - 1) / temperature)`` of the own rows of view ``a`` with view ``b``, ``(G, R, N)``."""
        scaled = self.units[a][:, self.rows] * (1 / temperature)
        return torch.baddbmm(scaled.new_full((), -1 / temperature), scaled, self.units[b].mT).exp_()


def contrast(
    views: Sequence[Tensor],
    pairs: Sequence[Pair],
    temperature: float,
    *,
    rows: slice | None = None,
    join: Callable[[Tensor], Tensor] = lambda x: x,
    emphasis: Tensor | None = None,
    gradient: bool = True,
) -> Contrast:
    """Weighted sum over pairs of views of the two-view NT-Xent loss, with its gradient.

    Similarities of a view with itself serve every pair it is in, and those of two views serve both directions. All
    exponentials share the shift ``1 / temperature``, the largest value a cosine can give, so that the matrix of one
    direction is the transpose of the other's.

    Args:
        views: ``(G, N, D)`` each, of the joined batch; row i of all views comes from image i.
        pairs: of which the loss is the weighted sum; every view is in one.
        temperature: divides the cosine similarities.
        rows: this process's rows; None for all.
        join: own rows ``(S, G, R)`` to those of the joined batch, ``(S, G, N)``.
        emphasis: ``(G, N)`` factors on the anchors' losses, None for 1; vectors stay negatives whatever theirs.
        gradient: whether to compute it.
    """
    n, dtype = views[0].shape[1], views[0].dtype
    if temperature < SMALLEST_FLOAT32:
        if views[0].device.type == "mps":
            raise ValueError(f"temperature {temperature} needs float64, which MPS lacks: at least {SMALLEST_FLOAT32}")
        views = [v.double() for v in views]
    norms = [torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(NORM_EPSILON) for v in views]
    data = _Units([v / norm for v, norm in zip(views, norms)], rows or slice(0, n), rows is None)
    own = data.own
    weights = own[0].new_full((1, n), 1 / n) if emphasis is None else emphasis.to(own[0].dtype) / n

    selves, crosses = _exponentials(data, pairs, temperature)
    self_sums = [block.sum(dim=-1) for block in selves]
    # Denominators of the anchors of both sides of each pair, (S, G, R).
    sides = [side for m, k, _ in pairs for side in ((m, k), (k, m))]
    denominators = torch.stack([self_sums[m] + crosses[m, k].sum(dim=-1) for m, k in sides])

    value = own[0].new_zeros(own[0].shape[0])
    for p, (m, k, weight) in enumerate(pairs):
        positive = (own[m] * own[k]).sum(dim=-1)
        losses = denominators[2 * p : 2 * p + 2].log().mean(dim=0) + (1 - positive) / temperature
        value = value + weight * (losses * weights[:, data.rows]).sum(dim=-1)
    if not gradient:
        return Contrast(value.to(dtype), [])
    # How an anchor's loss grows with each exponential in its denominator, (S, G, N).
    growth = 0.5 / temperature * weights / join(denominators)
    slopes = _slopes(data, selves, crosses, pairs, growth, weights / temperature)
    return Contrast(
        value.to(dtype),
        [_through_norm(g, u, norm[:, data.rows]).to(dtype) for g, u, norm in zip(slopes, own, norms)],
    )


def _exponentials(
    data: _Units, pairs: Sequence[Pair], temperature: float
) -> tuple[list[Tensor], dict[tuple[int, int], Tensor]]:
    """Of each view with itself, the diagonal 0, and of both sides of each pair; all ``(G, R, N)``."""
    selves = [data.similar(v, v, temperature) for v in range(len(data.units))]
    for block in selves:
        block.diagonal(offset=data.rows.start, dim1=-2, dim2=-1).zero_()
    crosses: dict[tuple[int, int], Tensor] = {}
    for m, k, _ in pairs:
        crosses[m, k] = data.similar(m, k, temperature)
        crosses[k, m] = crosses[m, k].mT if data.whole else data.similar(k, m, temperature)
    return selves, crosses


def _slopes(
    data: _Units,
    selves: list[Tensor],
    crosses: dict[tuple[int, int], Tensor],
    pairs: Sequence[Pair],
    growth: Tensor,
    pull: Tensor,
) -> list[Tensor]:
    """Gradient with respect to the own rows of the normalised vectors; uses up ``selves`` and ``crosses``.

    A similarity stands in the denominators of both vectors it compares, so its weight is the sum of their growths.
    """
    rows, own = data.rows, data.own
    result = [torch.zeros_like(o) for o in own]
    self_growth = [torch.zeros_like(growth[0]) for _ in own]
    for p, (m, k, weight) in enumerate(pairs):
        first, second = weight * growth[2 * p], weight * growth[2 * p + 1]
        self_growth[m] += first
        self_growth[k] += second
        block = crosses[m, k].mul_(first[:, rows, None] + second[:, None])
        result[m].baddbmm_(block, data.units[k])
        back = block.mT if data.whole else crosses[k, m].mul_(second[:, rows, None] + first[:, None])
        result[k].baddbmm_(back, data.units[m])
        towards = (-weight * pull)[:, rows, None]
        result[m].addcmul_(towards, own[k])
        result[k].addcmul_(towards, own[m])
    for v, factor in enumerate(self_growth):
        block = selves[v].mul_(factor[:, rows, None] + factor[:, None])
        result[v].baddbmm_(block, data.units[v])
    return result


def _through_norm(gradient: Tensor, unit: Tensor, norm: Tensor) -> Tensor:
    """Gradient with respect to ``x`` from that with respect to ``unit = x / norm``."""
    along = (gradient * unit).sum(dim=-1, keepdim=True)
    return (gradient - along * unit) / norm


def nt_xent(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy over the 2N vectors of each group.

    Args:
        x, y: ``(..., N, D)``; row i of ``x`` and row i of ``y`` are a positive pair, all other 2N - 2 vectors of the
            group are negatives.
        temperature: divides the cosine similarities.

    Returns:
        One value per group, ``(...)``: the mean over the 2N anchors.
    """
    check_pair(x, y)
    check_temperature(temperature)
    x, y = full_precision(x), full_precision(y)
    wanted = gradient_wanted([x, y])
    with torch.no_grad(), no_autocast(x):
        groups = [t.detach().reshape(-1, *t.shape[-2:]) for t in (x, y)]
        found = contrast(groups, [Pair(0, 1, 1.0)], temperature, gradient=wanted)
        value = found.value.view(x.shape[:-2])
        if not torch.isfinite(value).all():
            raise not_finite({"x": x, "y": y})
    if not wanted:
        return value
    return attach(value, [x, y], [g.view(x.shape) for g in found.gradients])


def check_temperature(temperature: float, name: str = "temperature") -> None:
    """Refuse temperatures so small that the exponentials of a loss would all be 0.

    Raises:
        ValueError: below 0.003, or NaN.
    """
    if not temperature >= SMALLEST:
        raise ValueError(f"{name} must be at least {SMALLEST}, not {temperature}")
