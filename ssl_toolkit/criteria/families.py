"""The two criteria as methods use them: on all views of a batch, and on groups of matched vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ssl_toolkit.criteria.distributed import gather_rows, own_rows, require_same, world_size
from ssl_toolkit.criteria.loss import Loss, Parts, chunk_bytes, evaluate
from ssl_toolkit.criteria.ntxent import Pair, check_temperature, contrast
from ssl_toolkit.criteria.vicreg import spread


class Groups(NamedTuple):
    """A criterion on groups of matched pairs: sums over the groups of its weighted terms, and the gradient
    ``(2, G, N, D)`` of ``scale`` times those sums."""

    terms: dict[str, Tensor]
    gradient: Tensor | None
    cancelled: Tensor | None = None


class Criterion(Protocol):
    """A family of losses on grouped vectors. Terms come weighted, so that a loss is their plain sum."""

    def views(self, embeddings: Sequence[Tensor], num_large: int) -> Loss:
        """Loss of the embeddings ``(B, D)`` of all views, large ones first."""
        ...

    def group_numbers(self, n: int, d: int) -> int:
        """Size of the largest tensor that one side of a group ``(N, D)`` needs."""
        ...

    def groups(
        self,
        pairs: Tensor,
        *,
        scale: float = 1.0,
        times: tuple[float, float] = (1.0, 1.0),
        emphasis: Tensor | None = None,
        gradient: bool = True,
    ) -> Groups:
        """The criterion on groups of matched vectors, whole ones, without a graph.

        Args:
            pairs: ``(2, G, N, D)``: ``pairs[0]`` and what it was matched with.
            scale: factor on the gradient, not on the terms.
            times: how often the statistics of ``pairs[0]`` alone count, and of ``pairs[1]``. A map that is compared
                with several others appears in all those pairs, and its statistics need computing once.
            emphasis: ``(G, N)``, how much each pair is pulled together; None for 1.
            gradient: whether to compute it.
        """
        ...


def view_pairs(num_views: int, num_large: int) -> list[tuple[int, int]]:
    """Ordered pairs (m, n), m a large view and n any other (VICRegL Eq. 5)."""
    return [(m, n) for m in range(num_large) for n in range(num_views) if n != m]


def _unordered(num_views: int, num_large: int) -> list[Pair]:
    """The same pairs, each once, with its share: (m, n) and (n, m) have the same loss."""
    ordered = view_pairs(num_views, num_large)
    return [Pair(m, n, (1 + (n < num_large)) / len(ordered)) for m, n in ordered if m < n]


def check_embeddings(embeddings: Sequence[Tensor], num_large: int) -> None:
    """Refuse embeddings that no criterion is defined on.

    Raises:
        ValueError: naming the argument and the shapes.
    """
    shapes = [tuple(e.shape) for e in embeddings]
    if len(embeddings) < 2 or not 1 <= num_large <= len(embeddings):
        raise ValueError(f"embeddings: two views or more are needed, one of them large, not {num_large} of {shapes}")
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"embeddings must share a shape (B, D), not {shapes}")
    check_dtypes("embeddings", embeddings)
    require_same("embeddings", [shapes[0][0], len(shapes), shapes[0][1]], embeddings[0].device)
    if shapes[0][0] * world_size() < 2:
        raise ValueError(f"embeddings: batch statistics need a global batch of 2 or more, not {shapes}")


def check_dtypes(name: str, tensors: Sequence[Tensor]) -> None:
    """Refuse tensors that are not floating point, or not alike.

    Raises:
        ValueError: naming the dtypes.
    """
    dtypes = list(dict.fromkeys(t.dtype for t in tensors))
    if len(dtypes) > 1 or not dtypes[0].is_floating_point:
        raise ValueError(f"{name} must be floating point and of one dtype, not {', '.join(map(str, dtypes))}")


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

    def __post_init__(self) -> None:
        weights = (self.invariance, self.variance, self.covariance)
        if not all(weight >= 0 for weight in weights) or not any(weights):
            raise ValueError(f"invariance, variance and covariance must not be negative, nor all 0, not {weights}")

    def _terms(self, invariance: Tensor, variance: Tensor, covariance: Tensor) -> dict[str, Tensor]:
        """Those that have a weight, weighted."""
        named = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return {name: getattr(self, name) * value for name, value in named.items() if getattr(self, name)}

    def views(self, embeddings: Sequence[Tensor], num_large: int) -> Loss:
        """Invariance is the mean over ordered pairs; the others are the mean over views or over pairs of sums.

        Raises:
            ValueError: shapes that differ, between views or processes, a global batch of one, values not finite.
        """
        check_embeddings(embeddings, num_large)
        pairs = _unordered(len(embeddings), num_large)

        def compute(inputs: list[Tensor], gradient: bool) -> Parts:
            count, batch = len(inputs), inputs[0].shape[0]
            # How often each view stands on either side of a pair, as a share; twice the mean adds both sides.
            shares = [1 / count] * count
            if self.sum_sides:
                shares = [sum(p.weight for p in pairs if v in p[:2]) for v in range(count)]
            zero = inputs[0].new_zeros(())
            variance, covariance, gradients, cancelled = zero, zero, [], zero.bool()
            for x, share in zip(inputs, shares):
                found = spread(
                    (gather_rows(x) if self.variance or self.covariance else x)[None],
                    share * self.variance,
                    share * self.covariance,
                    rows=own_rows(batch) if self.variance or self.covariance else None,
                    gradient=gradient,
                )
                variance, covariance = variance + share * found.variance[0], covariance + share * found.covariance[0]
                cancelled = cancelled | found.cancelled
                gradients += [] if found.gradient is None else [found.gradient[0]]
            invariance = zero
            if self.invariance:
                invariance = _pull_together(inputs, pairs, self.invariance, gradients)
            return Parts(self._terms(invariance, variance, covariance), gradients, cancelled)

        return evaluate("embeddings", embeddings, compute)

    def group_numbers(self, n: int, d: int) -> int:
        """The group itself: the smaller of N x N and D x D matrices is never larger."""
        return n * d

    def groups(
        self,
        pairs: Tensor,
        *,
        scale: float = 1.0,
        times: tuple[float, float] = (1.0, 1.0),
        emphasis: Tensor | None = None,
        gradient: bool = True,
    ) -> Groups:
        """See `Criterion`; each group's statistics are its own."""
        share = 1.0 if self.sum_sides else 0.5
        variance = covariance = pairs.new_zeros(())
        cancelled = pairs.new_zeros((), dtype=torch.bool)
        result = torch.empty_like(pairs, memory_format=torch.contiguous_format) if gradient else None
        # Both sides are groups alike: one pass over twice as many, where they count alike.
        first, second = times
        sides = [(slice(0, 2), first)] if first == second else [(slice(0, 1), first), (slice(1, 2), second)]
        for side, count in sides:
            weight = scale * share * count
            found = spread(
                pairs[side].flatten(0, 1),
                weight * self.variance,
                weight * self.covariance,
                gradient=gradient,
                out=None if result is None else result[side].flatten(0, 1),
            )
            variance = variance + share * count * found.variance.sum()
            covariance = covariance + share * count * found.covariance.sum()
            cancelled = cancelled | found.cancelled
        difference = pairs[0] - pairs[1]
        size = pairs.shape[-2] * pairs.shape[-1]
        squares = torch.linalg.vector_norm(difference, dim=-1).square()
        invariance = (squares if emphasis is None else squares * emphasis).sum() / size
        if result is not None and self.invariance:
            pulled = difference if emphasis is None else difference.mul_(emphasis[..., None])
            slope = 2 * scale * self.invariance / size
            result[0].add_(pulled, alpha=slope)
            result[1].sub_(pulled, alpha=slope)
        return Groups(self._terms(invariance, variance, covariance), result, cancelled)


def _pull_together(inputs: list[Tensor], pairs: Sequence[Pair], weight: float, gradients: list[Tensor]) -> Tensor:
    """This process's share of the weighted mean squared distance over ``pairs``; adds ``weight`` times its gradient.

    The sum over pairs is a quadratic form of the views with the pairs' graph Laplacian, taken of the differences to the
    first view so that nothing cancels.
    """
    count, (batch, dim) = len(inputs), inputs[0].shape
    laplacian = torch.zeros(count, count, dtype=inputs[0].dtype)
    for m, n, share in pairs:
        laplacian[m, m] += share
        laplacian[n, n] += share
        laplacian[m, n] -= share
        laplacian[n, m] -= share
    laplacian = laplacian.to(inputs[0].device)
    scale = 1 / (batch * dim * world_size())
    value = inputs[0].new_zeros(())
    step = max(1, chunk_bytes(inputs[0].device) // (count * dim * inputs[0].element_size()))
    for start in range(0, batch, step):
        rows = slice(start, start + step)
        offsets = torch.stack([x[rows] - inputs[0][rows] for x in inputs])
        pulled = (laplacian @ offsets.flatten(1)).view_as(offsets)
        value = value + scale * (pulled * offsets).sum()
        for gradient, pull in zip(gradients, pulled):
            gradient[rows].add_(pull, alpha=2 * weight * scale)
    return value


@dataclass(frozen=True)
class ContrastiveCriterion:
    """NT-Xent on any number of views or matched vectors; negatives come from the global batch.

    Attributes:
        temperature: of the cosine similarities, at least 0.003.
    """

    temperature: float = 0.2

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def views(self, embeddings: Sequence[Tensor], num_large: int) -> Loss:
        """Mean over the pairs of a large view with any other of the two-view loss (which is symmetric).

        Raises:
            ValueError: shapes that differ, between views or processes, a global batch of one, values not finite.
        """
        check_embeddings(embeddings, num_large)
        pairs = _unordered(len(embeddings), num_large)

        def compute(inputs: list[Tensor], gradient: bool) -> Parts:
            found = contrast(
                [gather_rows(x)[None] for x in inputs],
                pairs,
                self.temperature,
                rows=own_rows(inputs[0].shape[0]),
                join=lambda own: gather_rows(own.movedim(-1, 0)).movedim(0, -1),
                gradient=gradient,
            )
            return Parts({"contrastive": found.value[0]}, [g[0] for g in found.gradients])

        return evaluate("embeddings", embeddings, compute)

    def group_numbers(self, n: int, d: int) -> int:
        """The group or its similarities."""
        return n * max(n, d)

    def groups(
        self,
        pairs: Tensor,
        *,
        scale: float = 1.0,
        times: tuple[float, float] = (1.0, 1.0),
        emphasis: Tensor | None = None,
        gradient: bool = True,
    ) -> Groups:
        """See `Criterion`: the negatives of a vector are the same group's others. ``times`` have no say, since no
        part of the loss is of one side alone."""
        found = contrast(pairs.unbind(), [Pair(0, 1, scale)], self.temperature, emphasis=emphasis, gradient=gradient)
        value = found.value.sum() / scale
        return Groups({"contrastive": value}, torch.stack(found.gradients) if gradient else None)
