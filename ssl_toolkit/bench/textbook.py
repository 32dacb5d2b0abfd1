"""The losses as one would write them from the papers, in plain autograd: what the criteria are compared with.

Every covariance is a D x D matrix, every ordered pair of views is matched and compared anew in both directions, and
nothing is shared. They compute what `ssl_toolkit.criteria` computes under the options named in each function, and are
written apart from it, so that they are also its oracle.

Source: VICReg (ICLR 2022) Algorithm 1, VICRegL (NeurIPS 2022) Algorithm 1 and Eqs. 2 to 5, SimCLR (ICML 2020) Eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _variance(x: Tensor) -> Tensor:
    """``x`` is (N, ..., D): the hinge of each dimension's deviation over the batch, averaged."""
    return F.relu(1 - torch.sqrt(x.var(dim=0) + 1e-4)).mean()


def _covariance(x: Tensor) -> Tensor:
    """``x`` is (N, G, D): squared off-diagonal covariances over D, averaged over the G groups."""
    n, groups, d = x.shape
    centred = (x - x.mean(dim=0)).transpose(0, 1)
    cov = centred.mT @ centred / (n - 1)
    diagonal = torch.diagonal(cov, dim1=1, dim2=2)
    return (cov.square().sum() - diagonal.square().sum()) / (d * groups)


def _pairs(num_views: int, num_large: int) -> list[tuple[int, int]]:
    return [(m, n) for m in range(num_large) for n in range(num_views) if n != m]


def vicreg_global(embeddings: Sequence[Tensor], num_large: int) -> Tensor:
    """VICReg (25, 25, 1) on the embeddings ``(N, D)`` of all views.

    Invariance is averaged over ordered pairs, variance and covariance over views (`VICRegCriterion()`, and lightly).
    """
    pairs = _pairs(len(embeddings), num_large)
    invariance = torch.stack([F.mse_loss(embeddings[m], embeddings[n]) for m, n in pairs]).mean()
    variance = torch.stack([_variance(e) for e in embeddings]).mean()
    covariance = torch.stack([_covariance(e[:, None]) for e in embeddings]).mean()
    return 25 * invariance + 25 * variance + covariance


def _vicreg_pair(x: Tensor, y: Tensor) -> Tensor:
    """VICReg on matched vectors ``(N, G, D)``; the two sides' variance and covariance are averaged."""
    variance = (_variance(x) + _variance(y)) / 2
    covariance = (_covariance(x) + _covariance(y)) / 2
    return 25 * F.mse_loss(x, y) + 25 * variance + covariance


def _closest(x: Tensor, y: Tensor, distances: Tensor, gamma: int) -> tuple[Tensor, Tensor]:
    """The ``gamma`` cells of ``x`` closest to their nearest neighbours in ``y``, closest first, and these."""
    nearest = distances.min(dim=2)
    kept = nearest.values.topk(min(gamma, x.shape[1]), dim=1, largest=False).indices
    partners = nearest.indices.gather(1, kept)
    pick = kept[:, :, None].expand(-1, -1, x.shape[2]), partners[:, :, None].expand(-1, -1, x.shape[2])
    return x.gather(1, pick[0]), y.gather(1, pick[1])


def vicregl_local(
    vectors: Sequence[Tensor], points: Sequence[Tensor], num_large: int, gammas: tuple[int, int]
) -> Tensor:
    """VICRegL's local criterion with both matchings filtered.

    Args:
        vectors: of each view, ``(N, P, D)``.
        points: cell centres of each view, ``(N, P, 2)``.
        gammas: matches kept from the first view of an ordered pair, and from the second.

    Slots are in order of distance, directions averaged, matchings added, ordered pairs averaged: `LocalCriterion`
    with ``gamma`` and ``feature_gamma`` equal, ``gamma_by=argument`` and ``order=distance``, and lightly.
    """
    losses = []
    for m, n in _pairs(len(vectors), num_large):
        for place in (vectors, points):
            with torch.no_grad():
                forward, backward = torch.cdist(place[m], place[n]), torch.cdist(place[n], place[m])
            there = _vicreg_pair(*_closest(vectors[m], vectors[n], forward, gammas[0]))
            back = _vicreg_pair(*_closest(vectors[n], vectors[m], backward, gammas[1]))
            losses.append((there + back) / 2)
    return torch.stack(losses).sum() / len(_pairs(len(vectors), num_large))


def nt_xent(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """NT-Xent of ``(N, D)`` pairs as the cross entropy of 2N x 2N logits."""
    n = x.shape[0]
    z = F.normalize(torch.cat((x, y)), dim=1)
    itself = torch.eye(2 * n, dtype=torch.bool, device=x.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    positive = torch.arange(2 * n, device=x.device).roll(n)
    return F.cross_entropy(logits, positive)
