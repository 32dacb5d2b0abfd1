"""Where cells lie, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_toolkit.matching import CellAxes, cell_axes
from ssl_toolkit.matching.grid import check_axes
from tests.matching.oracles import loop_centres, random_boxes, random_flips

SIZES = [(7, 7), (3, 3), (5, 2), (1, 1), (1, 9), (16, 12)]


@pytest.mark.parametrize("size", SIZES)
def test_centres_equal_the_loop(size: tuple[int, int]) -> None:
    box, flip = random_boxes(8, seed=1).double(), random_flips(8, seed=2)
    axes = cell_axes(box, *size, flip)
    assert axes.cells == size[0] * size[1]
    for b in range(8):
        expected = torch.tensor(loop_centres(box[b].tolist(), *size, bool(flip[b])), dtype=torch.float64)
        torch.testing.assert_close(axes.points()[b], expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("start", [400.0, 4000.0])
@pytest.mark.parametrize("size", SIZES)
def test_centres_lie_strictly_inside_the_box(size: tuple[int, int], start: float) -> None:
    """In float32, for boxes of one pixel and more."""
    box = random_boxes(500, seed=3, start=start, side=(1.0, 300.0))
    points = cell_axes(box, *size, random_flips(500, seed=4)).points()
    for axis, low in ((0, 1), (1, 0)):
        assert (points[..., axis] > box[:, None, low]).all()
        assert (points[..., axis] < box[:, None, low + 2]).all()


def test_the_grid_fills_the_box_evenly() -> None:
    """First and last centre are half a cell from the edges: a grid stretched to the edges would not be."""
    axes = cell_axes(torch.tensor([[10.0, 20.0, 80.0, 48.0]]), 4, 7)
    assert axes.x[0].tolist() == [15, 25, 35, 45, 55, 65, 75]
    assert axes.y[0].tolist() == [23.5, 30.5, 37.5, 44.5]


def test_a_flip_reverses_columns_only() -> None:
    box = random_boxes(4, seed=5)
    plain, mirrored = cell_axes(box, 3, 5), cell_axes(box, 3, 5, torch.tensor([True, False, True, False]))
    assert torch.equal(plain.y, mirrored.y)
    assert torch.equal(plain.x[0::2].flip(1), mirrored.x[0::2])
    assert torch.equal(plain.x[1::2], mirrored.x[1::2])


def test_precision() -> None:
    box = random_boxes(2, seed=6)
    assert cell_axes(box.double(), 3, 3).y.dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        axes = cell_axes(box.to(dtype), 3, 3)
        assert axes.y.dtype == axes.x.dtype == axes.box.dtype == torch.float32
    assert not cell_axes(box.requires_grad_(), 3, 3).y.requires_grad


def test_centres_of_chosen_cells_are_those_of_all() -> None:
    axes = cell_axes(random_boxes(3, seed=7), 4, 6, random_flips(3, seed=8))
    cells = torch.randint(24, (3, 10), generator=torch.Generator().manual_seed(9))
    rows, columns = axes.centres(cells)
    expected = axes.points().gather(1, cells[:, :, None].expand(-1, -1, 2))
    assert torch.equal(torch.stack((rows, columns), dim=-1), expected)


def test_cell_diagonal() -> None:
    box = random_boxes(5, seed=10).double()
    diagonal = cell_axes(box, 4, 7).cell_diagonal()
    for b, (x0, y0, x1, y1) in enumerate(box.tolist()):
        assert diagonal[b].item() == pytest.approx(math.hypot((x1 - x0) / 7, (y1 - y0) / 4))


def test_inside_is_half_open() -> None:
    axes = cell_axes(torch.tensor([[0.0, 0.0, 6.0, 4.0]]), 2, 3)
    assert axes.points()[0].tolist() == [[1, 1], [1, 3], [1, 5], [3, 1], [3, 3], [3, 5]]
    assert axes.inside(torch.tensor([[1.0, 1.0, 5.0, 3.0]]))[0].tolist() == [True, True, False, False, False, False]


def test_inside_equals_the_loop() -> None:
    box, other = random_boxes(20, seed=11), random_boxes(20, seed=12)
    flip = random_flips(20, seed=13)
    inside = cell_axes(box.double(), 3, 4, flip).inside(other.double())
    assert 0 < inside.float().mean() < 1
    for b in range(20):
        x0, y0, x1, y1 = other[b].tolist()
        expected = [y0 <= y < y1 and x0 <= x < x1 for y, x in loop_centres(box[b].tolist(), 3, 4, bool(flip[b]))]
        assert inside[b].tolist() == expected


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"box \(3, 2\); expected box \(B, 4\)"):
        cell_axes(torch.zeros(3, 2), 7, 7)
    with pytest.raises(ValueError, match=r"box \(3, 4\), flip \(2,\)"):
        cell_axes(torch.zeros(3, 4), 7, 7, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="height 0 and width 7"):
        cell_axes(torch.zeros(3, 4), 0, 7)


def test_axes_that_disagree_are_named() -> None:
    good, other = cell_axes(torch.zeros(3, 4), 7, 5), cell_axes(torch.zeros(2, 4), 7, 5)
    check_axes(good, good)
    with pytest.raises(ValueError, match=r"key cells: y \(2, 7\), x \(2, 5\), box \(2, 4\).*B 3"):
        check_axes(good, other)
    for broken in (
        CellAxes(good.y, good.x[:2], good.box),
        CellAxes(good.y, good.x, good.box[:2]),
        CellAxes(good.y, good.x[0], good.box),
        CellAxes(good.y[0, 0], good.x, good.box),
        CellAxes(good.y, good.x, good.box[:, :2]),
    ):
        with pytest.raises(ValueError, match="query cells: y "):
            check_axes(broken, good)
