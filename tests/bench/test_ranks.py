"""Counted work of a process against closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from ssl_toolkit.bench.ranks import RanksConfig, count, count_rows
from ssl_toolkit.errors import UserError
from ssl_toolkit.registry import typed


def test_counts_equal_the_closed_forms() -> None:
    options = RanksConfig(batch=64, dim=512, local_dim=16, cells=9, gamma=4, worlds=[1, 2, 8, 32])
    n, d, c, slots = 64, 512, 16, 2 * (4 + 9)
    rows = list(count_rows(options))
    assert [(r.loss, r.ranks) for r in rows] == [(loss, w) for loss in ("global", "local") for w in (1, 2, 8, 32)]
    assert not dist.is_initialized()
    for row in rows:
        w = row.ranks
        share = (w - 1) / w
        numbers = 400 * share  # bytes at most for shapes and terms
        if row.loss == "global":
            # The Gram form and, with 8 n d, the invariance.
            flops, gathered, own = 2 * 4 * n * n * d + 8 * n * d, 2 * n * d * 4, 2 * n * d * 4
            assert row.shared.flops == flops // w
        else:
            flops, gathered, own = 2 * slots * 4 * n * c * c, 2 * slots * n * c * 4, 2 * 2 * slots * n // w * c * 4
            assert flops // w <= row.shared.flops <= flops // w * (1.0 if w == 1 else 2.5)  # slots do not divide
        assert row.repeated.flops == flops
        assert row.repeated.bytes == round(3 * share * gathered)
        if w in (1, 2) or row.loss == "global":
            assert share * own <= row.shared.bytes <= share * own + numbers + 1000 * share


def test_the_fullest_process_has_at_most_one_slot_more() -> None:
    options = RanksConfig(batch=64, dim=8, local_dim=16, cells=9, gamma=4, worlds=[1, 2, 8, 32])
    rows = [r for r in count_rows(options) if r.loss == "local"]
    slot = 2 * 4 * 64 * 16 * 16
    assert [r.shared.flops for r in rows] == [slot * n for n in (26, 13, 4, 1)]


def test_an_all_reduce_counts_as_a_ring() -> None:
    def step() -> torch.Tensor:
        x = torch.zeros(250)
        dist.all_reduce(x)
        return x.sum().requires_grad_()

    assert count(4, step).bytes == 2 * 3 / 4 * 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 10, "worlds": [4]}, "batch 10 must be 2 or more and divide by all of worlds, not by 4"),
        ({"gamma": 50}, "gamma at most cells"),
        ({"worlds": [0]}, "not by 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(RanksConfig, options, "bench")
