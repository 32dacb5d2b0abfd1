"""Off-diagonal covariance that float32 would lose in a difference, from N 64 to 2048 and D up to 8192."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ssl_toolkit.criteria import Matching, VICRegCriterion, covariance, matched_loss
from ssl_toolkit.criteria.vicreg import spread
from tests.criteria.test_distributed import spawn, start
from tests.criteria.test_vicreg import textbook_spread


def one_dimension_dominates(n: int, d: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(n, d, generator=generator) * 1e-3
    x[:, 0] += 30 * torch.randn(n, generator=generator)
    return x


def whitened(n: int, d: int, generator: torch.Generator) -> Tensor:
    """The closest N - 1 directions come to having no correlation between D dimensions."""
    x = torch.randn(n, d, generator=generator)
    left, _, right = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    return left[:, : n - 1] @ right[: n - 1] * n**0.5


@pytest.mark.parametrize(
    ("n", "d", "kind"),
    [
        (256, 2048, "normal"),
        (255, 256, "normal"),
        (256, 256, "normal"),
        (257, 256, "normal"),
        (511, 512, "whitened"),
        (256, 2048, "dominated"),
        (64, 3000, "dominated"),
    ],
)
def test_float32_keeps_the_covariance(n: int, d: int, kind: str, generator: torch.Generator) -> None:
    make = {"normal": lambda n, d, g: torch.randn(n, d, generator=g), "whitened": whitened}
    x = make.get(kind, one_dimension_dominates)(n, d, generator)
    exact = x.double().requires_grad_()
    _, expected = textbook_spread(exact)
    (gradient,) = torch.autograd.grad(expected, exact)
    single = x.requires_grad_()
    value = covariance(single)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    (found,) = torch.autograd.grad(value, single)
    assert (found - gradient).norm() <= 1e-4 * gradient.norm()


def test_the_guard_is_what_keeps_it(generator: torch.Generator) -> None:
    x = one_dimension_dominates(256, 2048, generator)
    _, expected = textbook_spread(x.double())
    unguarded = spread(x[None], 0.0, 1.0)
    assert bool(unguarded.cancelled)
    assert abs(unguarded.covariance.item() / expected.item() - 1) > 1e-2
    loss = VICRegCriterion(0, 0, 1).views([x.requires_grad_(), x.detach().clone()], 2)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.total.dtype == torch.float32
    assert not bool(spread(torch.randn(1, 256, 2048, generator=generator), 0.0, 1.0).cancelled)


def test_full_size(generator: torch.Generator) -> None:
    """N 2048, D 8192, the paper's global batch and expander."""
    x = torch.randn(2048, 8192, generator=generator) * torch.rand(8192, generator=generator) * 2 + 1
    exact = x.double()
    exact -= exact.mean(dim=0)
    expected = 0.0
    blocks = exact.split(2048, dim=1)
    for i, left in enumerate(blocks):  # the upper half of the D x D matrix, a block at a time
        for j, right in enumerate(blocks[i:]):
            matrix = left.T @ right / 2047
            if j == 0:
                matrix.fill_diagonal_(0)
            expected += (1 if j == 0 else 2) * matrix.square().sum().item() / 8192
    value = covariance(x.requires_grad_())
    assert value.item() == pytest.approx(expected, rel=1e-5)
    (found,) = torch.autograd.grad(value, x)
    rows = exact[:4]
    slope = rows @ exact.T @ exact - rows * exact.square().sum(dim=0)
    torch.testing.assert_close(found[:4].double(), slope * 4 / 8192 / 2047**2, rtol=1e-4, atol=1e-11)


def test_a_covariance_lost_to_cancellation_is_computed_again() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(32, 2, 512, generator=generator) * 1e-3 for _ in range(2)]
    for m in maps:
        m[..., 0] += 30 * torch.randn(32, 2, generator=generator)
    matching = Matching("location", 0, 1, None, torch.tensor([[1, 0]]).expand(32, 2), 1.0)
    criterion = VICRegCriterion(0, 0, 1)
    exact = matched_loss(criterion, [m.double() for m in maps], [matching]).total.item()
    assert matched_loss(criterion, maps, [matching]).total.item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(("scale", "lost"), [(0.2, False), (0.6, False), (2.0, True), (10.0, True), (20.0, True)])
def test_the_guard_works_where_it_is_needed_and_only_there(
    scale: float, lost: bool, generator: torch.Generator
) -> None:
    """Off-diagonal shares of 0.7, 0.06, 2e-3, 8e-5 and less."""
    x = torch.randn(256, 2048, generator=generator)
    x[:, 0] *= max(1.0, scale * 2048**0.5)
    assert bool(spread(x[None], 0.0, 1.0).cancelled) is lost
    exact = x.double()
    assert covariance(x).item() == pytest.approx(textbook_spread(exact)[1].item(), rel=1e-4)


def test_a_square_normal_batch_needs_no_guard(generator: torch.Generator) -> None:
    assert not bool(spread(torch.randn(1, 256, 256, generator=generator), 0.0, 1.0).cancelled)


def test_one_lost_group_among_many_is_enough(generator: torch.Generator) -> None:
    x = torch.stack([torch.randn(64, 512, generator=generator), one_dimension_dominates(64, 512, generator)])
    expected = textbook_spread(x.double())[1]
    torch.testing.assert_close(covariance(x).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_lost_view_among_many_is_enough(at: int, generator: torch.Generator) -> None:
    z = [torch.randn(64, 512, generator=generator) * 1e-3 for _ in range(3)]
    z[at] = one_dimension_dominates(64, 512, generator)
    criterion = VICRegCriterion(0, 0, 1)
    exact = criterion.views([t.double() for t in z], 2).total.item()
    assert criterion.views(z, 2).total.item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_lost_map_among_many_is_enough(at: int, generator: torch.Generator) -> None:
    """Map 0 is in two pairs, so its statistics are computed apart from the others'."""
    maps = [torch.randn(64, 1, 512, generator=generator) * 1e-3 for _ in range(3)]
    maps[at] = one_dimension_dominates(64, 512, generator)[:, None]
    key = torch.zeros(64, 1, dtype=torch.int64)
    matchings = [Matching("feature", 0, y, None, key, weight) for y, weight in ((1, 0.5), (2, 0.2))]
    criterion = VICRegCriterion(0, 0, 1)
    exact = matched_loss(criterion, [m.double() for m in maps], matchings).total.item()
    assert matched_loss(criterion, maps, matchings).total.item() == pytest.approx(exact, rel=1e-4)


def lost_slots(world: int) -> tuple[list[Tensor], Matching]:
    """Two slots, of which the second, another process's than the first, needs float64."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(16 * world, 2, 512, generator=generator) for _ in range(2)]
    for m in maps:
        m[:, 1] = one_dimension_dominates(16 * world, 512, generator)
    every = torch.tensor([[0, 1]]).expand(16 * world, 2)
    return maps, Matching("location", 0, 1, None, every, 1.0)


def guarded(rank: int, world: int, port: int, folder: str) -> None:
    start(rank, world, port)
    maps, matching = lost_slots(world)
    own = slice(rank * 16, (rank + 1) * 16)
    mine = Matching("location", 0, 1, None, matching.key[own], 1.0)
    loss = matched_loss(VICRegCriterion(0, 0, 1), [m[own] for m in maps], [mine])
    (Path(folder) / f"{rank}.txt").write_text(str(loss.total.item()))
    dist.destroy_process_group()


def test_a_slot_lost_on_one_process_is_computed_again_by_all(tmp_path: Path) -> None:
    spawn(guarded, 2, str(tmp_path))
    maps, matching = lost_slots(2)
    exact = matched_loss(VICRegCriterion(0, 0, 1), [m.double() for m in maps], [matching]).total.item()
    for rank in range(2):
        assert float((tmp_path / f"{rank}.txt").read_text()) == pytest.approx(exact, rel=1e-4)
