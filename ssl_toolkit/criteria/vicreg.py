"""The VICReg terms on groups of vectors: variance, invariance, covariance.

All functions take ``(..., N, D)``: the leading dimensions are independent groups (one for the global criterion, one per
matched slot for the local one), N is the batch, D the dimension. They return one value per group, ``(...)``.

Source: Bardes, Ponce, LeCun, "VICReg" (ICLR 2022), Eqs. 1 to 5, with the mean over D in the invariance of their code
and of Algorithm 1 in "VICRegL" (NeurIPS 2022); Eq. 5 of VICReg sums over D.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-4


def invariance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of paired vectors."""
    return (x - y).square().mean(dim=(-2, -1))


def variance(x: Tensor, target: float = 1.0, epsilon: float = EPSILON) -> Tensor:
    """Hinge on the standard deviation of each dimension over the batch, mean over dimensions.

    ``epsilon`` is added to the unbiased variance before the square root.
    """
    return _hinge(_centre(x).square().sum(dim=-2), x.shape[-2], target, epsilon)


def covariance(x: Tensor) -> Tensor:
    """Sum of the squared off-diagonal entries of the covariance matrix, divided by D.

    Where N < D the N x N Gram matrix of the centred batch gives the same sum, since ``|X'X|_F = |XX'|_F``, and no D x D
    matrix is made.
    """
    centred = _centre(x)
    return _off_diagonal(centred, centred.square().sum(dim=-2))


def variance_covariance(x: Tensor, target: float = 1.0, epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    """`variance` and `covariance` from one pass over the batch."""
    centred = _centre(x)
    squares = centred.square().sum(dim=-2)
    return _hinge(squares, x.shape[-2], target, epsilon), _off_diagonal(centred, squares)


def _centre(x: Tensor) -> Tensor:
    return x - x.mean(dim=-2, keepdim=True)


def _hinge(squares: Tensor, n: int, target: float, epsilon: float) -> Tensor:
    return F.relu(target - (squares / (n - 1) + epsilon).sqrt()).mean(dim=-1)


def _off_diagonal(centred: Tensor, squares: Tensor) -> Tensor:
    n, d = centred.shape[-2:]
    products = centred @ centred.mT if n < d else centred.mT @ centred
    # The norm, unlike the sum of squares, makes no second matrix.
    total = torch.linalg.vector_norm(products, dim=(-2, -1)).square()
    return (total - squares.square().sum(dim=-1)) / (d * (n - 1) ** 2)


def check_pair(x: Tensor, y: Tensor) -> None:
    """Refuse what no criterion is defined on, naming the shapes.

    Raises:
        ValueError: shapes that differ, fewer than two dimensions, or a batch of one.
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"x and y must share a shape (..., N, D), not {tuple(x.shape)} and {tuple(y.shape)}")
    if x.shape[-2] < 2:
        raise ValueError(f"batch statistics need N >= 2 vectors, not {x.shape[-2]} (shape {tuple(x.shape)})")


def std_of(x: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over the batch, ``(...)``: near 0 means collapse."""
    with torch.no_grad():
        return x.std(dim=-2).mean(dim=-1)
