"""The matched loss against loops over matchings, slots and images, and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_toolkit.criteria import (
    ContrastiveCriterion,
    Criterion,
    Matching,
    NonFiniteError,
    VICRegCriterion,
    matched_loss,
)
from ssl_toolkit.criteria.loss import CHUNK
from tests.criteria.test_ntxent import loop_nt_xent
from tests.criteria.test_vicreg import loop_covariance, loop_invariance, loop_variance

BATCH, CHANNELS = 4, 3
CELLS = (6, 6, 4)


def make_maps(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(BATCH, p, CHANNELS, generator=generator, dtype=dtype, requires_grad=True) for p in CELLS]


def random_cells(slots: int, cells: int, seed: int, distinct: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if not distinct:
        return torch.randint(0, cells, (BATCH, slots), generator=generator)
    return torch.stack([torch.randperm(cells, generator=generator)[:slots] for _ in range(BATCH)])


def make_matchings() -> list[Matching]:
    """Kept pairs, whole maps, a view in several pairs, keys used twice."""
    return [
        Matching("location", 0, 1, random_cells(3, 6, 1, True), random_cells(3, 6, 2, False), 0.7),
        Matching("location", 2, 0, random_cells(2, 4, 3, True), random_cells(2, 6, 4, False), 0.3),
        Matching("feature", 0, 1, None, random_cells(6, 6, 5, False), 0.5),
        Matching("feature", 0, 2, None, random_cells(6, 4, 6, False), 0.2),
    ]


def loop_loss(maps: list[Tensor], matchings: list[Matching], criterion: str) -> float:
    total = 0.0
    for m in matchings:
        slots = m.key.shape[1]
        for g in range(slots):
            cells = [g] * BATCH if m.query is None else m.query[:, g].tolist()
            x = torch.stack([maps[m.x][b, cells[b]] for b in range(BATCH)]).detach()
            y = torch.stack([maps[m.y][b, m.key[b, g]] for b in range(BATCH)]).detach()
            if criterion == "vicreg":
                value = 25 * loop_invariance(x, y)
                value += sum(25 * loop_variance(side) + loop_covariance(side) for side in (x, y)) / 2
            else:
                value = loop_nt_xent(x, y, 0.3)
            total += m.weight * value / slots
    return total


CRITERIA: dict[str, Criterion] = {"vicreg": VICRegCriterion(), "contrastive": ContrastiveCriterion(0.3)}


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("chunk", [1, 200, 2**20])
def test_it_equals_loops_whatever_the_chunks(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK, "cpu", chunk)
    maps, matchings = make_maps(), make_matchings()
    loss = matched_loss(CRITERIA[name], maps, matchings)
    assert loss.total.item() == pytest.approx(loop_loss(maps, matchings, name), rel=1e-10)
    assert sum(v.item() for v in loss.terms.values()) == pytest.approx(loss.total.item())
    by_location = sum(v.item() for k, v in loss.terms.items() if k.startswith("location_"))
    assert by_location == pytest.approx(loop_loss(maps, matchings[:2], name), rel=1e-10)


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_right(name: str, masked: bool) -> None:
    matchings = make_matchings()
    if masked:
        valid = torch.tensor([[True, False, True], [False, False, True], [True, True, True], [False, True, False]])
        first = matchings[0]
        matchings[0] = Matching(first.kind, first.x, first.y, first.query, first.key, first.weight, valid)
    assert torch.autograd.gradcheck(lambda *m: matched_loss(CRITERIA[name], m, matchings).total, make_maps())


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_without_gradients_the_value_is_the_same(name: str) -> None:
    maps, matchings = make_maps(), make_matchings()
    expected = matched_loss(CRITERIA[name], maps, matchings).total
    with torch.no_grad():
        found = matched_loss(CRITERIA[name], maps, matchings).total
    assert not found.requires_grad
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_pairs_too_far_apart_are_not_pulled_together() -> None:
    maps = [m.detach().requires_grad_() for m in make_maps()]
    query, key = random_cells(3, 6, 1, True), random_cells(3, 6, 2, False)
    valid = torch.zeros(BATCH, 3, dtype=torch.bool)
    valid[1, 2] = valid[3, 0] = True
    only = VICRegCriterion(1, 0, 0)
    loss = matched_loss(only, maps, [Matching("location", 0, 1, query, key, 1.0, valid)])
    pulled = [(maps[0][b, query[b, g]] - maps[1][b, key[b, g]]).square().mean() for b, g in ((1, 2), (3, 0))]
    assert loss.total.item() == pytest.approx(sum(p.item() for p in pulled) / 2)
    nothing = matched_loss(only, maps, [Matching("location", 0, 1, query, key, 1.0, torch.zeros_like(valid))])
    nothing.total.backward()
    assert nothing.total.item() == 0
    assert maps[0].grad is not None
    assert not maps[0].grad.any()
    spread_alone = VICRegCriterion(0, 1, 1)
    with_mask = matched_loss(spread_alone, maps, [Matching("location", 0, 1, query, key, 1.0, valid)])
    without = matched_loss(spread_alone, maps, [Matching("location", 0, 1, query, key, 1.0)])
    assert with_mask.total.item() == without.total.item()


def test_bf16_maps_are_compared_in_float32_under_autocast() -> None:
    maps, matchings = make_maps(), make_matchings()
    low = [m.detach().bfloat16().requires_grad_() for m in maps]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = matched_loss(VICRegCriterion(), low, matchings)
    loss.total.backward()
    exact = [m.detach().double().requires_grad_() for m in low]
    expected = matched_loss(VICRegCriterion(), exact, matchings).total
    expected.backward()
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(low, exact):
        assert a.grad is not None
        assert a.grad.dtype == torch.bfloat16
        assert b.grad is not None
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("weights", [(25, 25, 0), (25, 0, 1), (0, 25, 0), (0, 0, 1), (1, 0, 0)])
def test_gradients_of_any_subset_of_terms_are_right(weights: tuple[float, float, float]) -> None:
    criterion = VICRegCriterion(*weights)
    assert torch.autograd.gradcheck(lambda *m: matched_loss(criterion, m, make_matchings()).total, make_maps())


@pytest.mark.parametrize("criterion", [VICRegCriterion(), ContrastiveCriterion(0.3)])
def test_masks_go_with_their_slots_whatever_the_chunks(criterion: Criterion, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_matchings()[0]
    valid = torch.tensor([[True, False, True], [False, False, True], [True, True, True], [False, True, False]])
    masked = Matching(first.kind, 0, 1, first.query, first.key, 1.0, valid)

    def gradients(chunk: int) -> list[Tensor]:
        monkeypatch.setitem(CHUNK, "cpu", chunk)
        maps = make_maps()
        total = matched_loss(criterion, maps, [masked]).total
        return [total.detach(), *torch.autograd.grad(total, maps[:2])]

    for found, expected in zip(gradients(1), gradients(2**20)):
        torch.testing.assert_close(found, expected)


def test_bad_input_is_named() -> None:
    maps, matchings = make_maps(), make_matchings()
    key = matchings[0].key

    def run(matching: Matching | None = None, vectors: Any = maps) -> None:
        matched_loss(VICRegCriterion(), vectors, [matching or matchings[0]])

    with pytest.raises(ValueError, match="there is none"):
        matched_loss(VICRegCriterion(), maps, [])
    with pytest.raises(ValueError, match=r"same B and C, not \[\(4, 6, 3\), \(4, 6, 2\)"):
        run(vectors=[maps[0], maps[1][..., :2]])
    with pytest.raises(ValueError, match=r"query must be \(B, G\) for maps .* not \(4, 2\)"):
        run(Matching("location", 0, 1, key[:, :2], key, 1.0))
    with pytest.raises(ValueError, match=r"valid must be \(B, G\)"):
        run(Matching("location", 0, 1, key, key, 1.0, key[:, :1] > 0))
    with pytest.raises(ValueError, match="a key is needed for each of the 6 cells"):
        run(Matching("location", 0, 1, None, key, 1.0))
    with pytest.raises(ValueError, match="global batch of 2 or more"):
        run(Matching("location", 0, 1, key[:1], key[:1], 1.0), [m[:1] for m in maps])
    broken = maps[1].detach().clone()
    broken[0, :, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"maps\[1\] of shape \(4, 6, 3\) has 6 values that are not finite"):
        run(vectors=[maps[0], broken, maps[2]])


def test_maps_of_other_batches_are_named() -> None:
    maps = make_maps()
    with pytest.raises(ValueError, match=r"same B and C, not \[\(4, 6, 3\), \(3, 6, 3\)"):
        matched_loss(VICRegCriterion(), [maps[0], maps[1][:3]], make_matchings()[:1])
