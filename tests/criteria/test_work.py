"""What is computed, counted in operations of matrix products."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssl_toolkit.bench.ranks import flop_counter
from ssl_toolkit.criteria import ContrastiveCriterion, Criterion, Matching, VICRegCriterion, matched_loss
from ssl_toolkit.criteria.vicreg import spread


@pytest.mark.parametrize(
    ("n", "d", "rows", "expected"),
    [
        (48, 32, None, 4 * 48 * 32 * 32),  # 2 N > 2 D: the D x D matrix, though N < 2 D
        (24, 32, None, 4 * 24 * 24 * 32),
        (48, 32, slice(0, 12), 4 * 12 * 48 * 32),  # 2 * 12 * 48 < 32 * 60: the own rows of the Gram matrix
        (48, 16, slice(0, 12), 2 * (12 + 48) * 16 * 16),
    ],
)
def test_the_cheaper_form_is_used(
    n: int, d: int, rows: slice | None, expected: int, generator: torch.Generator
) -> None:
    x = torch.randn(1, n, d, generator=generator)
    with flop_counter() as counter:
        spread(x, 1.0, 1.0, rows=rows)
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("criterion", [VICRegCriterion(), ContrastiveCriterion()])
@pytest.mark.parametrize("wanted", ["no_grad", "frozen", "yes"])
def test_gradients_nobody_wants_cost_nothing(criterion: Criterion, wanted: str, generator: torch.Generator) -> None:
    z = [torch.randn(8, 64, generator=generator, requires_grad=wanted != "frozen") for _ in range(2)]
    maps = [torch.randn(8, 3, 64, generator=generator, requires_grad=wanted != "frozen") for _ in range(2)]
    every = torch.arange(3).expand(8, 3)

    def products(call: Any) -> int:
        with torch.set_grad_enabled(wanted != "no_grad"), flop_counter() as counter:
            call()
        return int(counter.get_total_flops())

    found = products(lambda: criterion.views(z, 2)) + products(
        lambda: matched_loss(criterion, maps, [Matching("location", 0, 1, None, every, 1.0)])
    )
    one = 2 * 8 * 8 * 64  # an N x N matrix
    value = (2 + 3 * 2) * one + 2 * 2 * 2 * 8 * 64 if isinstance(criterion, VICRegCriterion) else 3 * (1 + 3) * one
    assert (found == value) is (wanted != "yes")


def test_a_whole_maps_statistics_are_computed_once() -> None:
    maps = [torch.randn(6, 4, 32) for _ in range(3)]
    every = torch.arange(4).expand(6, 4)

    def products(*pairs: tuple[int, int]) -> int:
        with flop_counter() as counter:
            matched_loss(VICRegCriterion(), maps, [Matching("feature", x, y, None, every, 0.3) for x, y in pairs])
        return int(counter.get_total_flops())

    one = products((0, 1))  # both sides of four slots
    assert products((0, 1), (1, 2)) == 2 * one
    assert products((0, 1), (0, 2)) == 1.5 * one
