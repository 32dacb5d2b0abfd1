"""The two criteria as methods use them: on all views of a batch, and on a set of matched local vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssl_toolkit.criteria.distributed import gather_batch
from ssl_toolkit.criteria.ntxent import nt_xent
from ssl_toolkit.criteria.precision import full_precision, no_autocast
from ssl_toolkit.criteria.vicreg import (
    check_pair,
    covariance,
    invariance,
    variance,
    variance_covariance,
)

Terms = dict[str, Tensor]


def view_pairs(num_views: int, num_large: int) -> list[tuple[int, int]]:
    """Ordered pairs (m, n), m a large view and n any other (VICRegL Eq. 5)."""
    return [(m, n) for m in range(num_large) for n in range(num_views) if n != m]


class Criterion(Protocol):
    """A family of losses on grouped vectors. Terms come weighted, so that a loss is their plain sum."""

    def views(self, embeddings: Sequence[Tensor], num_large: int) -> Terms:
        """Terms of the embeddings ``(B, D)`` of all views, large ones first."""
        ...

    def pair(self, x: Tensor, y: Tensor) -> Terms:
        """Terms of matched vectors ``(G, B, D)``, averaged over the G groups."""
        ...


@dataclass(frozen=True)
class VICRegCriterion:
    """VICReg on any number of views or matched vectors.

    Attributes:
        invariance, variance, covariance: coefficients; a term of weight 0 is not computed.
        sum_sides: True adds the variance and covariance of both sides of a pair, as in the papers' equations (VICRegL
            Eq. 1). False averages them, as in the published VICRegL code; its average for the global criterion is over
            the views, so that small views count like large ones.
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    sum_sides: bool = False

    def _spread(self, x: Tensor) -> Terms:
        """Weighted variance and covariance of each group, those that have a weight."""
        if self.variance and self.covariance:
            var, cov = variance_covariance(x)
            return {"variance": self.variance * var, "covariance": self.covariance * cov}
        if self.variance:
            return {"variance": self.variance * variance(x)}
        return {"covariance": self.covariance * covariance(x)}

    def views(self, embeddings: Sequence[Tensor], num_large: int) -> Terms:
        """Invariance is the mean over ordered pairs; the others are the mean over views or over pairs of sums."""
        pairs = view_pairs(len(embeddings), num_large)
        with no_autocast(embeddings[0]):
            local = [full_precision(e) for e in embeddings]
            check_pair(local[0], local[1])
            terms: Terms = {}
            if self.invariance:
                # (m, n) and (n, m) are equal: large pairs once with weight two.
                values = [(1 + (n < num_large)) * invariance(local[m], local[n]) for m, n in pairs if m < n]
                terms["invariance"] = self.invariance * torch.stack(values).sum() / len(pairs)
            if not (self.variance or self.covariance):
                return terms
            # How often each view stands on either side of a pair, as a share; sums to 1.
            counts = [sum(v in pair for pair in pairs) for v in range(len(embeddings))]
            shares = [c / sum(counts) if self.sum_sides else 1 / len(embeddings) for c in counts]
            scale = 2.0 if self.sum_sides else 1.0
            spreads = [self._spread(gather_batch(e)) for e in local]
            for name in spreads[0]:
                parts = [share * spread[name] for share, spread in zip(shares, spreads)]
                terms[name] = scale * torch.stack(parts).sum()
        return terms

    def pair(self, x: Tensor, y: Tensor) -> Terms:
        """Each slot is a group: its statistics are over the batch, then averaged over slots."""
        scale = 1.0 if self.sum_sides else 0.5
        with no_autocast(x):
            x, y = full_precision(x), full_precision(y)
            check_pair(x, y)
            terms: Terms = {}
            if self.invariance:
                terms["invariance"] = self.invariance * invariance(x, y).mean()
            if not (self.variance or self.covariance):
                return terms
            # Both sides are groups alike: one pass over twice as many.
            spread = self._spread(gather_batch(torch.cat((x, y))))
            terms |= {name: scale * 2 * value.mean() for name, value in spread.items()}
        return terms


@dataclass(frozen=True)
class ContrastiveCriterion:
    """NT-Xent on any number of views or matched vectors; negatives come from the global batch.

    Attributes:
        temperature: of the cosine similarities.
    """

    temperature: float = 0.2

    def views(self, embeddings: Sequence[Tensor], num_large: int) -> Terms:
        """Mean over the pairs of a large view with any other of the two-view loss (which is symmetric)."""
        pairs = view_pairs(len(embeddings), num_large)
        with no_autocast(embeddings[0]):
            check_pair(embeddings[0], embeddings[1])
            joined = [gather_batch(full_precision(e)) for e in embeddings]
            values = [
                (1 + (n < num_large)) * nt_xent(joined[m], joined[n], self.temperature) for m, n in pairs if m < n
            ]
            return {"contrastive": torch.stack(values).sum() / len(pairs)}

    def pair(self, x: Tensor, y: Tensor) -> Terms:
        """Each slot is a group: the negatives of a vector are the same slot's vectors of the other images."""
        with no_autocast(x):
            check_pair(x, y)
            x, y = gather_batch(full_precision(x)), gather_batch(full_precision(y))
            return {"contrastive": nt_xent(x, y, self.temperature).mean()}
