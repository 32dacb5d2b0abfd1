"""The VICReg terms on groups of vectors: variance, invariance, covariance.

All functions take ``(..., N, D)``: the leading dimensions are independent groups (one for the global criterion, one per
matched slot for the local one), N is the batch, D the dimension. They return one value per group, ``(...)``.

Source: Bardes, Ponce, LeCun, "VICReg" (ICLR 2022), Eqs. 1 to 5, with the mean over D in the invariance of their code
and of Algorithm 1 in "VICRegL" (NeurIPS 2022); Eq. 5 of VICReg sums over D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_toolkit.criteria.loss import attach, gradient_wanted, not_finite
from ssl_toolkit.criteria.precision import full_precision, no_autocast

EPSILON = 1e-4
"""Added to the unbiased variance before the square root."""

CANCELLED = 1e-2
"""Off-diagonal share of the squared Gram matrix below which float32 does not hold it: above, its error was at most 5e-5
of what is left, at a share of 2e-3 it was 2e-4."""


class Spread(NamedTuple):
    """Variance and covariance terms ``(G,)`` of G groups, unweighted (zeros where the weight is 0), and the gradient
    ``(G, R, D)`` of their weighted sum with respect to the own rows.

    Of the terms it is the own rows' share; the shares of all processes add up to the term.
    """

    variance: Tensor
    covariance: Tensor
    gradient: Tensor | None
    cancelled: Tensor


def spread(
    x: Tensor,
    variance_weight: float,
    covariance_weight: float,
    *,
    rows: slice | None = None,
    gradient: bool = True,
    out: Tensor | None = None,
) -> Spread:
    """Variance and covariance of each group with their gradient, from one centred copy of the batch.

    The sum of squared off-diagonal entries of the covariance matrix needs no D x D matrix where N is below D:
    ``|X'X|_F = |XX'|_F`` for the centred batch X, from which the diagonal of ``X'X`` is taken off. Of the N x N Gram
    matrix a process computes its own R rows, which are all its own gradient needs. Where 2 R N > D (N + R), the
    D x D matrix is less work and is used, its diagonal set to zero.

    No term of the gradient passes through the mean: it cancels, since the columns of a centred batch add up to zero.

    Args:
        x: ``(G, N, D)``, the joined batch.
        variance_weight, covariance_weight: a term of weight 0 is not computed.
        rows: this process's rows; None for all.
        gradient: whether to compute it.
        out: where to put it, ``(G, R, D)``.
    """
    n, d = x.shape[-2:]
    var = cov = x.new_zeros(x.shape[0])
    cancelled = x.new_zeros((), dtype=torch.bool)
    own = x if rows is None else x[:, rows]
    if gradient and out is None:
        out = torch.empty_like(own)
    if not variance_weight and not covariance_weight:
        return Spread(var, cov, out.zero_() if out is not None else None, cancelled)
    centred = x - x.mean(dim=-2, keepdim=True)
    own = centred if rows is None else centred[:, rows]
    squares = centred.square().sum(dim=-2)
    slope = torch.zeros_like(squares)  # of the gradient along a row's own entries, per dimension
    if variance_weight:
        std = (squares / (n - 1) + EPSILON).sqrt()
        var = F.relu(1 - std).mean(dim=-1) * (own.shape[1] / n)
        slope = (-variance_weight / (d * (n - 1))) / std * (std < 1)
    if not covariance_weight:
        return Spread(var, cov, None if out is None else torch.mul(own, slope[:, None], out=out), cancelled)
    scale = 1 / (d * (n - 1) ** 2)
    pull = 4 * covariance_weight * scale
    found = _off_diagonal(centred, own, squares)
    if out is not None:
        slope = slope - pull * found.diagonal
        torch.mul(own, slope[:, None], out=out).baddbmm_(found.left, found.right, alpha=pull)
    return Spread(var, scale * found.sum, out, found.cancelled)


class _OffDiagonal(NamedTuple):
    """``sum`` ``(G,)``, the own rows' share of the squared off-diagonal entries of ``X'X``. A quarter of its gradient
    is ``left @ right - own * diagonal``."""

    sum: Tensor
    left: Tensor
    right: Tensor
    diagonal: Tensor | float
    cancelled: Tensor


def _off_diagonal(centred: Tensor, own: Tensor, squares: Tensor) -> _OffDiagonal:
    """From the D x D matrix or the own rows of the Gram matrix, whichever is less work; see `spread`."""
    (n, d), r = centred.shape[-2:], own.shape[1]
    if 2 * r * n > d * (n + r):
        matrix = centred.mT @ centred
        matrix.diagonal(dim1=-2, dim2=-1).zero_()
        never = centred.new_zeros((), dtype=torch.bool)
        return _OffDiagonal(_sum_of_squares(matrix) * (r / n), own, matrix, 0.0, never)
    gram = own @ centred.mT
    whole = _sum_of_squares(gram)
    own_squares = squares if own is centred else own.square().sum(dim=-2)
    left = whole - (own_squares * squares).sum(dim=-1)
    return _OffDiagonal(left, gram, centred, squares, (left < CANCELLED * whole).any())


def _sum_of_squares(matrices: Tensor) -> Tensor:
    """Of each matrix, row by row: a norm over all entries at once makes no temporary either, but adds them up naively,
    which at 2048 x 2048 is off by 2e-4."""
    return torch.linalg.vector_norm(matrices, dim=-1).square().sum(dim=-1)


def variance(x: Tensor) -> Tensor:
    """Hinge on the standard deviation of each dimension over the batch, ``max(0, 1 - std)``, mean over dimensions."""
    return _spread_term(x, 1.0, 0.0)


def covariance(x: Tensor) -> Tensor:
    """Sum of the squared off-diagonal entries of the covariance matrix, divided by D."""
    return _spread_term(x, 0.0, 1.0)


def _spread_term(x: Tensor, variance_weight: float, covariance_weight: float) -> Tensor:
    check_groups("x", x)
    x = full_precision(x)
    wanted = gradient_wanted([x])
    with torch.no_grad(), no_autocast(x):
        groups = x.detach().reshape(-1, *x.shape[-2:])
        found = spread(groups, variance_weight, covariance_weight, gradient=wanted)
        if x.dtype == torch.float32 and x.device.type != "mps" and bool(found.cancelled):
            found = spread(groups.double(), variance_weight, covariance_weight, gradient=wanted)
        value = (found.variance if variance_weight else found.covariance).to(x.dtype).view(x.shape[:-2])
        if not torch.isfinite(value).all():
            raise not_finite({"x": x})
    if found.gradient is None:
        return value
    return attach(value, [x], [found.gradient.to(x.dtype).view(x.shape)])


def invariance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of paired vectors."""
    check_pair(x, y)
    with no_autocast(x):
        value = (full_precision(x) - full_precision(y)).square().mean(dim=(-2, -1))
    if not torch.isfinite(value).all():
        raise not_finite({"x": x, "y": y})
    return value


def check_groups(name: str, x: Tensor) -> None:
    """Refuse what has no batch statistics.

    Raises:
        ValueError: fewer than two dimensions, a batch of one, or a tensor that is not floating point.
    """
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"{name} must be floating point of shape (..., N, D), not {x.dtype} {tuple(x.shape)}")
    if x.shape[-2] < 2:
        raise ValueError(f"{name}: batch statistics need N >= 2 vectors, not {x.shape[-2]} (shape {tuple(x.shape)})")


def check_pair(x: Tensor, y: Tensor) -> None:
    """Refuse pairs that do not go together.

    Raises:
        ValueError: shapes that differ, or what `check_groups` refuses.
    """
    if x.shape != y.shape:
        raise ValueError(f"x and y must share a shape (..., N, D), not {tuple(x.shape)} and {tuple(y.shape)}")
    check_groups("x", x)
    check_groups("y", y)


def std_of(x: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over the batch, ``(...)``: near 0 means collapse."""
    with torch.no_grad():
        return x.std(dim=-2).mean(dim=-1)
