"""Exact nearest neighbours in cosine similarity, whatever finds them.

A quick search tells which rows can be among the nearest: by products in bfloat16 where the processor has them, in
float32 elsewhere, or by faiss. How far its similarities can be off is bounded, and everything that the bound leaves
open is compared again, pair by pair, in float32 and in one way; the order is that of these similarities, the first of
equals first. So neighbours, and all that is made of them, do not depend on the engine, on how the work is cut, or on
how many processes share it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.bank import BLOCK, UNIT16, Bank, bfloat16_error, float32_error

ENGINES = ("auto", "torch", "faiss")

SCORES = {"cpu": 2**24, "other": 2**27}
"""Similarities held at once."""
QUERIES = 8192
"""Taken at once."""
PRODUCT = 4096
"""Rows of the bank in a matrix product on a CPU: what it keeps in its cache."""
GROUP = 16
"""Similarities of which only the largest is looked at first, at most."""
PENDING = 2**20
"""Candidates of a part of the queries that wait for being compared."""
SMALL_BANK = 8192
"""Rows below which nothing is gained by other than float32 products."""

SHIFT, LOW = 32, 0xFFFFFFFF
NOTHING = torch.iinfo(torch.int64).min
BELOW = -8.0
"""Less than any similarity."""


def pick_engine(asked: str, device: torch.device, rows: int) -> str:
    """``bf16``, ``fp32`` (both by torch) or ``faiss``, for a bank of ``rows`` on ``device``.

    Raises:
        UserError: faiss is asked for and not installed.
    """
    installed = importlib.util.find_spec("faiss") is not None
    if asked == "faiss" and not installed:
        raise UserError("knn.engine=faiss: faiss is not installed; pip install faiss-cpu, or take knn.engine=torch")
    quick = device.type == "cpu" and rows >= SMALL_BANK and _has_bf16()
    if asked == "torch" or (asked == "auto" and (quick or device.type != "cpu")):
        return "bf16" if quick else "fp32"
    # On macOS the OpenMP of faiss and that of torch may end the process when they meet.
    wanted = asked == "faiss" or (installed and rows >= SMALL_BANK and sys.platform != "darwin")
    return "faiss" if wanted else "fp32"


def _has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16; where it does not, products of it are slower than of float32."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)


@torch.no_grad()
def nearest(
    bank: Bank,
    queries: Tensor,
    k: int,
    *,
    engine: str = "auto",
    own: Tensor | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> tuple[Tensor, Tensor]:
    """The k rows of ``bank`` most similar to each query, of equals those that come first.

    Memory does not grow with the bank, and with the queries only by the result.

    Args:
        queries: ``(Q, D)`` float32, of any length.
        k: at most the rows of ``bank``, without its own row.
        engine: of `ENGINES`, what tells which can be among the nearest; the result does not depend on it.
        own: ``(Q,)`` int64, a row of ``bank`` that is left out for each query.
        advance: called with the number of queries done.

    Returns:
        Cosine similarity ``(Q, k)`` float32, falling, and row ``(Q, k)`` int64, on the device of the bank.
    """
    kind = pick_engine(engine, bank.device, len(bank))
    wanted = k if own is None else k + 1
    found = [torch.empty(0, k, dtype=torch.int64, device=bank.device)]
    for part in torch.split(torch.arange(len(queries)), QUERIES) if len(queries) else ():
        x = torch.nn.functional.normalize(queries[part].to(bank.device, torch.float32), dim=1)
        keys = by_faiss(bank, x, wanted) if kind == "faiss" else by_products(bank, x, wanted, kind)
        if own is not None:
            mine = _rows(keys) == own[part].to(bank.device)[:, None]
            keys = keys.masked_fill(mine, NOTHING).topk(k, dim=1).values
        found.append(keys)
        advance(len(part))
    joined = torch.cat(found)
    return _similarities(joined), _rows(joined)


def by_products(bank: Bank, queries: Tensor, k: int, kind: str) -> Tensor:
    """The k nearest of ``queries`` ``(Q, D)`` of unit length as `_join`ed numbers ``(Q, k)``, falling, from matrix
    products in ``bf16`` or ``fp32``."""
    source = bank.rounded() if kind == "bf16" else bank
    sent = queries.bfloat16() if kind == "bf16" else queries
    error = bfloat16_error(bank, queries) if kind == "bf16" else float32_error(bank) * torch.ones_like(queries[:, :1])
    size = max(1, SCORES["cpu" if queries.device.type == "cpu" else "other"] * bank.features.shape[1] // BLOCK)
    parts = [
        Search(bank, q, k, e, 1.01 * UNIT16 if kind == "bf16" else 0.0)
        for q, e in zip(torch.split(queries, size), torch.split(error, size))
    ]
    for start, block in source.blocks():
        for part, rows in zip(parts, torch.split(sent, size)):
            part.look(start, *_scores(rows, block, k))
    return torch.cat([part.keys() for part in parts])


def _scores(queries: Tensor, block: Tensor, k: int) -> tuple[Tensor, int]:
    """Products ``(q, g, n)``, padded, the group of a row of ``block`` being its position modulo n; and how many."""
    rows, group = len(block), GROUP
    while group > 1 and rows < 8 * k * group:
        group //= 2
    width = -(-rows // group)
    scores = queries.new_empty(len(queries), group * width)
    scores[:, rows:] = BELOW
    step = PRODUCT if queries.device.type == "cpu" else rows
    for first in range(0, rows, step):
        last = min(first + step, rows)
        torch.mm(queries, block[first:last].T, out=scores[:, first:last])
    return scores.view(len(queries), group, width), rows


@dataclass
class Search:
    """The search for the k nearest of some queries, block after block.

    Attributes:
        queries: ``(q, D)`` of unit length.
        error: ``(q, 1)``, how far a score is from the similarity at most, up to one number for each query, besides
        relative: times the score.
    """

    bank: Bank
    queries: Tensor
    k: int
    error: Tensor
    relative: float
    _tops: Tensor = field(init=False)
    _keys: Tensor = field(init=False)
    _pending: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    _waiting: int = 0

    def __post_init__(self) -> None:
        shape = len(self.queries), self.k
        self._tops = torch.full(shape, -torch.inf, device=self.queries.device)
        self._keys = torch.full(shape, NOTHING, device=self.queries.device)

    def look(self, start: int, scores: Tensor, rows: int) -> None:
        """Take up a block that begins at row ``start``, with its `_scores`."""
        _, group, width = scores.shape
        tops = scores.amax(1)
        highest = tops.topk(min(self.k, width), dim=1).values.float()
        # As many rows are at least as similar as the k-th highest of groups: a bound from below on the k-th highest.
        self._tops = torch.cat([self._tops, highest], 1).topk(self.k, dim=1).values
        least = self._least().to(scores.dtype)
        query, column = (tops >= least).nonzero(as_tuple=True)
        position = column[:, None] + width * torch.arange(group, device=column.device)
        values = scores.flatten(1)[query[:, None], position]
        kept, at = ((values >= least[query]) & (position < rows)).nonzero(as_tuple=True)
        self._pending.append((query[kept], column[kept] + width * at + start, values[kept, at]))
        self._waiting += len(kept)
        if self._waiting > PENDING:
            self._compare()

    def keys(self) -> Tensor:
        """The nearest of all blocks so far, `_join`ed, ``(q, k)``, falling."""
        if self._pending:
            self._compare()
        return self._keys

    def _least(self) -> Tensor:
        """A score below which no row can be among the nearest, ``(q, 1)``: it can be too low by its error, and that of
        the k-th highest too high. With room for rounding it as scores are."""
        top = self._tops[:, -1:].clamp_min(BELOW)
        least = top - self.relative * top.abs() - 2 * self.error
        return torch.where(least < 0, least * (1 + 3 * self.relative), least * (1 - 2 * self.relative))

    def _compare(self) -> None:
        """Compare what is pending, if it is still open, pair by pair."""
        query, index, values = (torch.cat(parts) for parts in zip(*self._pending))
        if len(self._pending) > 1:
            kept = (values >= self._least()[query, 0]).nonzero()[:, 0]
            kept = kept[query[kept].argsort(stable=True)]
            query, index = query[kept], index[kept]
        counts = torch.bincount(query, minlength=len(self.queries))
        found = _join(self.bank.pairs(self.queries, counts, index), index)
        padded = torch.full((len(counts), int(counts.max())), NOTHING, device=found.device)
        padded[torch.arange(padded.shape[1], device=found.device) < counts[:, None]] = found
        self._keys = torch.cat([self._keys, padded], 1).topk(self.k, dim=1).values
        self._pending, self._waiting = [], 0


def by_faiss(bank: Bank, queries: Tensor, k: int) -> Tensor:
    """`by_products` from faiss; where equals leave open what is nearest, by products after all."""
    import faiss

    width = min(len(bank), k + max(16, k // 8))
    best = torch.full((len(queries), width), -torch.inf)
    index = torch.zeros(len(queries), width, dtype=torch.int64)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        for start, block in bank.blocks():
            size = min(width, len(block))
            x, y = queries.cpu().numpy(), block.cpu().numpy()
            values, position = map(torch.from_numpy, faiss.knn(x, y, size, metric=faiss.METRIC_INNER_PRODUCT))
            best, order = torch.cat([best, values], 1).topk(width, dim=1)
            index = torch.cat([index, position + start], 1).gather(1, order)
    finally:
        faiss.omp_set_num_threads(threads)
    best, index = best.to(bank.device), index.to(bank.device)
    kept = best >= best[:, k - 1 : k] - 2 * float32_error(bank)
    keys = torch.full_like(index, NOTHING)
    keys[kept] = _join(bank.pairs(queries, kept.sum(1), index[kept]), index[kept])
    keys = keys.topk(k, dim=1).values
    unsure = kept[:, -1].nonzero()[:, 0] if width < len(bank) else ()
    if len(unsure):
        keys[unsure] = by_products(bank, queries[unsure], k, "fp32")
    return keys


def _join(similarity: Tensor, row: Tensor) -> Tensor:
    """One int64 of a float32 and a row below 2^32: in the order of the first, then against that of the second."""
    bits = (similarity + 0.0).contiguous().view(torch.int32).long()  # adding 0 makes one zero of two
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << SHIFT) | (LOW - row)


def _similarities(keys: Tensor) -> Tensor:
    bits = (keys >> SHIFT).int()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)


def _rows(keys: Tensor) -> Tensor:
    return LOW - (keys & LOW)
