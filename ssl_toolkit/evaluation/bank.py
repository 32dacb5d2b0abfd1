"""The features that neighbours are looked for among, and how far quick ways to compare them can be off."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from ssl_toolkit.evaluation.heads import resident

BLOCK = 2**25
"""Numbers of the bank compared at once: 128 MiB."""
PAIRS = 2**26
"""Numbers gathered at once where pairs are compared one by one: 256 MiB."""
KEPT = 2**28
"""Bytes up to which a bank is kept in bfloat16 as well."""
UNIT32, UNIT16 = 2.0**-24, 2.0**-8
"""Relative error of rounding to float32 and to bfloat16."""


class Bank:
    """Features that neighbours are looked for among.

    Args:
        features: ``(M, D)`` float32, of any length; may be mapped from a file.
        device: where they are compared; they are moved there if they fit well.
    """

    def __init__(self, features: Tensor, device: torch.device | None = None) -> None:
        self.device = device or features.device
        self.features = resident(features, self.device)
        norms = torch.linalg.vector_norm(self.features, dim=1)
        self.inverse = norms.clamp_min(1e-12).reciprocal()
        self._rounded: Rounded | None = None

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Position of its first row and ``(n, D)`` rows of unit length, for one block after the other."""
        size = max(1, BLOCK // self.features.shape[1])
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield start, (self.features[rows] * self.inverse[rows, None]).to(self.device)

    def rounded(self) -> Rounded:
        """In bfloat16; made once."""
        if self._rounded is None:
            self._rounded = Rounded(self)
        return self._rounded

    def pairs(self, queries: Tensor, counts: Tensor, index: Tensor) -> Tensor:
        """Similarity of pairs, each computed alone.

        Args:
            queries: ``(Q, D)`` of unit length.
            counts: ``(Q,)`` int64, how many pairs each query is in.
            index: ``(n,)`` int64, the row of the bank in each pair, the pairs of the first query first.

        Returns:
            ``(n,)`` float32.
        """
        here = self.features.device
        queries, counts, index = queries.to(here), counts.to(here), index.to(here)
        products = _sampled if here.type == "cpu" else _gathered
        return (products(queries, self.features, counts, index) * self.inverse[index]).to(self.device)


class Rounded:
    """What rows of unit length differ from their mean, in bfloat16: it orders similarities to a query as they do, and
    is smaller, so that less is lost.

    Attributes:
        largest: length of a row, at most.
        lost: length of what a row loses in rounding, at most.
    """

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._mean = (torch.mv(bank.features.T, bank.inverse) / len(bank)).to(bank.device)
        keep = 2 * bank.features.numel() <= KEPT
        self._kept: list[tuple[int, Tensor]] = []
        self.largest = self.lost = 0.0
        for start, rows, rounded in self._make():
            self.largest = max(self.largest, float(torch.linalg.vector_norm(rows, dim=1).max()))
            self.lost = max(self.lost, float(torch.linalg.vector_norm(rows.sub_(rounded), dim=1).max()))
            if keep:
                self._kept.append((start, rounded))

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Position of its first row and rows ``(n, D)``, for one block after the other."""
        if self._kept:
            yield from self._kept
        else:
            yield from ((start, rounded) for start, _, rounded in self._make())

    def _make(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        for start, block in self._bank.blocks():
            rows = block.sub_(self._mean)
            yield start, rows, rows.bfloat16()


def _sampled(queries: Tensor, features: Tensor, counts: Tensor, index: Tensor) -> Tensor:
    """The products of some pairs without copies of their rows: several times as fast as gathering them."""
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    size = (len(queries), len(features))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        pattern = torch.sparse_csr_tensor(first, index, queries.new_zeros(len(index)), size, check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, queries, features.T, beta=0.0).values()


def _gathered(queries: Tensor, features: Tensor, counts: Tensor, index: Tensor) -> Tensor:
    row = torch.repeat_interleave(torch.arange(len(queries), device=index.device), counts)
    size = max(1, PAIRS // features.shape[1])
    return torch.cat(
        [(queries[r] * features[i]).sum(1) for r, i in zip(torch.split(row, size), torch.split(index, size))]
    )


def float32_error(bank: Bank) -> float:
    """How far a similarity by a matrix product can be from that of the pair computed alone: each sums D products of
    numbers whose squares sum to one, and rounds at every step."""
    steps = 2 * bank.features.shape[1] + 16
    return steps * UNIT32 + (0.0 if _full_precision(bank.device) else 2.02 * UNIT16)


def bfloat16_error(bank: Bank, queries: Tensor) -> Tensor:
    """The same for products with `Rounded`, besides rounding of the product itself; ``(Q, 1)``."""
    rounded = bank.rounded()
    missing = torch.linalg.vector_norm(queries - queries.bfloat16(), dim=1, keepdim=True)
    lost = missing * rounded.largest + (1 + missing) * rounded.lost
    return 1.01 * lost + float32_error(bank) * (2 + rounded.largest)


def _full_precision(device: torch.device) -> bool:
    """Whether products of float32 matrices are not shortened (TF32, bfloat16)."""
    try:
        return torch.get_float32_matmul_precision() == "highest" and not (
            device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
        )
    except RuntimeError:  # torch's old and new switches were both used
        return False
