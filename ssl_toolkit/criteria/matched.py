"""A criterion on the matched local vectors of many pairs of views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_toolkit.criteria.distributed import from_owners, require_same, share_out, sum_over_ranks, to_owners, world_size
from ssl_toolkit.criteria.families import Criterion, check_dtypes
from ssl_toolkit.criteria.loss import Loss, Parts, chunk_bytes, evaluate


@dataclass(frozen=True, eq=False)
class Matching:
    """G pairs of cells for each image of the batch; slot g of all images is a group.

    Attributes:
        kind: leads the names of its terms.
        x, y: numbers of the two maps.
        query: ``(B, G)`` int64 cells of ``x``; None for every cell in raster order.
        key: ``(B, G)`` int64, the cells of ``y`` they go with.
        weight: of the mean over slots in the sum over matchings, positive.
        valid: ``(B, G)`` bool, pairs that are pulled together; None for all. The others still count in the statistics
            of their slot, or as negatives.
    """

    kind: str
    x: int
    y: int
    query: Tensor | None
    key: Tensor
    weight: float
    valid: Tensor | None = None


def matched_loss(
    criterion: Criterion, vectors: Sequence[Tensor], matchings: Sequence[Matching], *, whole_maps: bool = False
) -> Loss:
    """Weighted sum over matchings of the mean over their slots of ``criterion``.

    Slots are gathered, compared and their gradients added back a few at a time, so that beside the gradient of the maps
    nothing large is kept. With several processes each takes a share of the slots, whole.

    Args:
        vectors: ``(B, P, C)``, one map per view; P may differ.
        whole_maps: whether the parts of the criterion that are of one side alone (variance and covariance) are those of
            each position of each map over the batch, every map as often as it stands on a side of a matching, in place
            of those of the matched vectors of each slot.

    Returns:
        Terms are named ``<kind>_<term>``.

    Raises:
        ValueError: maps that disagree, no matching, a global batch of one, values that are not finite.
    """
    _check(vectors, matchings)
    counted = _whole_maps(vectors, matchings) if whole_maps else list(zip(matchings, _times(matchings)))
    return evaluate("maps", vectors, lambda inputs, gradient: _compute(criterion, inputs, counted, gradient))


def _check(vectors: Sequence[Tensor], matchings: Sequence[Matching]) -> None:
    shapes = [tuple(v.shape) for v in vectors]
    if not matchings:
        raise ValueError("matchings: there is none")
    if any(len(s) != 3 or (s[0], s[2]) != (shapes[0][0], shapes[0][2]) for s in shapes):
        raise ValueError(f"maps must be (B, P, C) with the same B and C, not {shapes}")
    check_dtypes("maps", vectors)
    for m in matchings:
        if not m.weight > 0 or not m.key.numel():
            raise ValueError(
                f"matching {m.kind}: weight {m.weight} must be positive, key {tuple(m.key.shape)} not empty"
            )
        for name, cells in (("query", m.query), ("key", m.key), ("valid", m.valid)):
            if cells is None:
                continue
            if cells.ndim != 2 or cells.shape[0] != shapes[0][0] or cells.shape != m.key.shape:
                raise ValueError(
                    f"matching {m.kind}: {name} must be (B, G) for maps {shapes}, not {tuple(cells.shape)}"
                )
        if m.query is None and m.key.shape[1] != shapes[m.x][1]:
            raise ValueError(f"matching {m.kind}: a key is needed for each of the {shapes[m.x][1]} cells")
        if m.key.device.type == "cpu" and not 0 <= int(m.key.min()) <= int(m.key.max()) < shapes[m.y][1]:
            raise ValueError(f"matching {m.kind}: a key is not one of the {shapes[m.y][1]} cells of map {m.y}")
    batch, positions = shapes[0][0], sum(s[1] for s in shapes)
    require_same("maps", [batch, positions, shapes[0][2], sum(m.key.shape[1] for m in matchings)], vectors[0].device)
    if batch * world_size() < 2:
        raise ValueError(f"maps: batch statistics need a global batch of 2 or more, not {shapes}")


def _rows(cells: Tensor | None, batch: int, positions: int, device: torch.device) -> Tensor:
    """Rows of the flattened maps ``(G, B)`` that ``cells`` ``(B, G)`` stand for."""
    offsets = torch.arange(batch, device=device) * positions
    if cells is None:
        return torch.arange(positions, device=device)[:, None] + offsets
    return (cells + offsets[:, None]).t().contiguous()


def _chunks(groups: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """Slots to work on at a time, in chunks of about the same length; at least one for every process."""
    most = max(world_size(), chunk_bytes(device) // bytes_each)
    count = -(-groups // most)
    for part in range(count):
        yield slice(part * groups // count, (part + 1) * groups // count)


def _times(matchings: Sequence[Matching]) -> list[tuple[float, float]]:
    """How often the statistics of each matching's two sides count: whole maps are the same groups in every pair of
    their kind, so the first stands for all."""
    totals: dict[tuple[str, int], float] = {}
    for m in matchings:
        if m.query is None:
            totals[m.kind, m.x] = totals.get((m.kind, m.x), 0.0) + m.weight
    times = []
    for m in matchings:
        own = 1.0 if m.query is not None else totals.pop((m.kind, m.x), 0.0) / m.weight
        times.append((own, 1.0))
    return times


def _whole_maps(vectors: Sequence[Tensor], matchings: Sequence[Matching]) -> list[tuple[Matching, tuple[float, float]]]:
    """The matchings without statistics, then the statistics of each map of each kind without a pull."""
    totals: dict[tuple[str, int], float] = {}
    for m in matchings:
        for view in (m.x, m.y):
            totals[m.kind, view] = totals.get((m.kind, view), 0.0) + m.weight
    counted = [(m, (0.0, 0.0)) for m in matchings]
    for (kind, view), weight in totals.items():
        batch, cells, _ = vectors[view].shape
        every = torch.arange(cells, device=vectors[view].device).expand(batch, cells)
        nothing = torch.zeros_like(every, dtype=torch.bool)
        counted.append((Matching(kind, view, view, None, every, weight, nothing), (1.0, 0.0)))
    return counted


def _emphasis(valid: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``(G, B)`` weights of mean 1 over all pairs of all processes, or 0 everywhere where no pair is valid."""
    if valid is None:
        return None
    weights = valid.t().to(dtype)
    total = sum_over_ranks(weights.sum())
    return weights * (valid.numel() * world_size() / total.clamp_min(1))


def _compute(
    criterion: Criterion,
    inputs: list[Tensor],
    matchings: Sequence[tuple[Matching, tuple[float, float]]],
    gradient: bool,
) -> Parts:
    batch, _, channels = inputs[0].shape
    maps = [v.reshape(-1, channels) for v in inputs]
    gradients = [torch.zeros_like(m) for m in maps] if gradient else []
    terms: dict[str, Tensor] = {}
    cancelled, taken = None, 0
    # A process owns 1 / W of the slots, with W times as many vectors in each.
    numbers = criterion.group_numbers(batch * world_size(), channels) // world_size()
    bytes_each = numbers * maps[0].element_size()
    for m, times in matchings:
        groups = m.key.shape[1]
        scale = m.weight / groups
        queries = _rows(m.query, batch, inputs[m.x].shape[1], m.key.device)
        keys = _rows(m.key, batch, inputs[m.y].shape[1], m.key.device)
        emphasis = _emphasis(m.valid, inputs[0].dtype)
        for slots in _chunks(groups, bytes_each, maps[0].device):
            at_x, at_y = queries[slots].reshape(-1), keys[slots].reshape(-1)
            sizes = share_out(slots.stop - slots.start, taken)
            taken += slots.stop - slots.start
            pairs = maps[0].new_empty(2, len(at_x) // batch, batch, channels)
            for side, source, at in ((pairs[0], maps[m.x], at_x), (pairs[1], maps[m.y], at_y)):
                torch.index_select(source, 0, at, out=side.view(-1, channels))
            if world_size() > 1:
                pairs = to_owners(pairs.movedim(0, 2), sizes).movedim(2, 0).contiguous()
            weights = None if emphasis is None else to_owners(emphasis[slots], sizes)
            found = criterion.groups(pairs, scale=scale, times=times, emphasis=weights, gradient=gradient)
            for name, value in found.terms.items():
                key = f"{m.kind}_{name}"
                terms[key] = terms.get(key, 0) + scale * value
            if found.cancelled is not None:
                cancelled = found.cancelled if cancelled is None else cancelled | found.cancelled
            if found.gradient is not None:
                back = found.gradient
                if world_size() > 1:
                    back = from_owners(back.movedim(0, 2), sizes).movedim(2, 0)
                for target, at, part in ((m.x, at_x, back[0]), (m.y, at_y, back[1])):
                    gradients[target].index_add_(0, at, part.reshape(-1, channels))
    return Parts(terms, [g.view_as(v) for g, v in zip(gradients, inputs)], cancelled)
