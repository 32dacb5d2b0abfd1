"""How much of their space vectors use: standard deviation, effective rank, correlation. Read by no loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RANK_ROWS = 1024
"""Rows of a batch that the effective rank is taken of, at most: its cost grows with their square."""

RANK_EPSILON = 1e-7
"""Added to each share of the singular values, as in RankMe for float32."""


def _double(x: Tensor) -> Tensor:
    """``x`` in float64, on the CPU where its device has none."""
    return x.detach().cpu().double() if x.device.type == "mps" else x.detach().double()


@torch.no_grad()
def effective_rank(x: Tensor) -> Tensor:
    """RankMe of a batch: ``exp`` of the entropy of its singular values, each as a share of their sum plus 1e-7.

    From 1, where all vectors lie on one line through zero, to ``min(N, D)``. Vectors are not centred. The singular
    values come from the Gram matrix of the shorter side in float64, which holds them to 1e-8 of the largest.

    Source: Garrido et al. 2023 (arXiv:2210.02885), Eq. 2; there of 25,600 images, here of a batch.

    Args:
        x: ``(N, D)``; of more than `RANK_ROWS` rows the first are taken.

    Returns:
        Scalar, float64; NaN where ``x`` is not finite or all 0.
    """
    x = _double(x[:RANK_ROWS])
    if not bool(x.isfinite().all()):
        return x.new_full((), math.nan)
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum() + RANK_EPSILON
    return (-(share * share.log()).sum()).exp()


@torch.no_grad()
def mean_correlation(x: Tensor) -> Tensor:
    """Mean absolute correlation of two different dimensions of a batch ``(N, D)``, scalar float32.

    A dimension that does not vary correlates with none. The D x D matrix is made a strip at a time.
    """
    x = x.detach().float()
    d = x.shape[1]
    if d < 2:
        return x.new_zeros(())
    centred = x - x.mean(dim=0)
    length = centred.norm(dim=0)
    # Below the rounding of the mean a dimension is constant.
    still = length <= x.abs().amax(dim=0) * x.shape[0] * torch.finfo(x.dtype).eps
    unit = torch.where(still, torch.zeros_like(centred), centred / length.where(~still, 1))
    strips = [(unit[:, start : start + 1024].T @ unit).abs().sum() for start in range(0, d, 1024)]
    return (torch.stack(strips).sum() - unit.square().sum()) / (d * (d - 1))


@torch.no_grad()
def relative_spread(x: Tensor) -> Tensor:
    """Standard deviation of L2-normalised vectors ``(N, D)``, mean over dimensions, times ``sqrt(D)``; float32.

    1 where directions are spread evenly over the sphere, 0 where all vectors point the same way, whatever N, D and
    the scale of the vectors are.
    """
    x = torch.nn.functional.normalize(x.detach().float(), dim=1)
    return x.std(dim=0).mean() * math.sqrt(x.shape[1])
