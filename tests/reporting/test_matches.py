"""Cell positions and true errors against loops, and the files they are read from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.matches import (
    KINDS,
    Matches,
    MatchExample,
    cell_centres,
    describe,
    error_limit,
    match_figure,
    mean_errors,
    read_matches,
)
from ssl_toolkit.reporting.plots import png
from tests.reporting.synthetic_runs import loop_centres, match_arrays


@pytest.fixture
def examples(run: Path) -> list[MatchExample]:
    return read_matches(run / "examples" / "matches.npz")


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (7, 7), (3, 5)])
def test_cell_centres_equal_a_loop(flip: bool, grid: tuple[int, int]) -> None:
    box = np.array([3.5, 10.25, 63.5, 40.0])
    np.testing.assert_allclose(cell_centres(box, flip, grid), loop_centres(box, flip, grid), rtol=1e-12)


def test_cell_centres_by_hand() -> None:
    box = np.array([10, 20, 30, 60], dtype=np.float32)
    assert cell_centres(box, False, (2, 2)).tolist() == [[15, 30], [25, 30], [15, 50], [25, 50]]
    assert cell_centres(box, True, (2, 2)).tolist() == [[25, 30], [15, 30], [25, 50], [15, 50]]


def test_errors_equal_a_loop(examples: list[MatchExample]) -> None:
    assert any(example.flips[0] != example.flips[1] for example in examples)
    for example in examples:
        a, b = (loop_centres(example.boxes[v], bool(example.flips[v]), example.grid) for v in (0, 1))
        for kind in KINDS:
            index = example.matches[kind].index
            expected = [math.dist(a[i], b[index[i]]) for i in range(len(a))]
            np.testing.assert_allclose(example.errors(kind), expected, atol=1e-9)
        nearest = [min(math.dist(p, q) for q in b) for p in a]
        np.testing.assert_allclose(example.errors("location"), nearest, atol=1e-9)


def test_best_are_the_closest_kept(examples: list[MatchExample]) -> None:
    for example in examples:
        matches = example.matches["feature"]
        pairs = sorted((d, i) for i, (d, kept) in enumerate(zip(matches.distance, matches.kept)) if kept)
        assert example.best("feature", 5).tolist() == [i for _, i in pairs[:5]]
        assert len(example.best("feature", 99)) == 14


def test_mean_errors_equal_a_loop(examples: list[MatchExample]) -> None:
    total: dict[str, list[float]] = {"location": [], "feature": [], "chance": []}
    for example in examples:
        a, b = (loop_centres(example.boxes[v], bool(example.flips[v]), example.grid) for v in (0, 1))
        for kind in KINDS:
            matches = example.matches[kind]
            total[kind] += [math.dist(a[i], b[matches.index[i]]) for i in range(36) if matches.kept[i]]
        total["chance"] += [math.dist(p, q) for p in a for q in b]
    errors = mean_errors(examples)
    for kind, values in total.items():
        assert errors[kind] == pytest.approx(sum(values) / len(values))
    assert errors["location"] < errors["feature"] < errors["chance"]


def test_the_colour_scale_fits_what_is_drawn(examples: list[MatchExample]) -> None:
    drawn = [e.errors(kind)[e.best(kind)].max() for e in examples for kind in KINDS]
    assert max(drawn) <= error_limit(examples) < max(drawn) + 1


def test_figures_draw(examples: list[MatchExample]) -> None:
    for kind in KINDS:
        assert png(match_figure(examples[0], kind)).startswith(b"\x89PNG")
    tall = np.zeros((90, 40, 3), dtype=np.uint8)
    none = {**examples[0].matches}
    none["feature"] = type(none["feature"])(none["feature"].index, none["feature"].distance, np.zeros(36, dtype=bool))
    example = MatchExample(tall, examples[0].views, examples[0].boxes, examples[0].flips, (6, 6), none)
    assert png(match_figure(example, "feature")).startswith(b"\x89PNG")
    assert "No match by feature" in describe(example, "feature")


def test_a_description_says_the_numbers(examples: list[MatchExample]) -> None:
    text = describe(examples[0], "location")
    best = examples[0].errors("location")[examples[0].best("location")]
    assert f"{best.mean():.1f} px over the 10 drawn" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"feature_kept": None}, "no array 'feature_kept'"),
        ({"seed_3": None}, "no array 'seed_3'"),
        ({"box_a": np.zeros((4, 3))}, "box_a is (4, 3), expected (4, 4)"),
        ({"location": np.full((4, 36), 36)}, "location must hold cells 0 to 35"),
        ({"feature_distance": np.zeros((4, 35))}, "feature_distance is (4, 35), expected (4, 36)"),
        ({"grid": np.array([6])}, "grid is (1,)"),
        ({"seed_0": np.zeros((64, 64))}, "seed_0 is (64, 64)"),
        ({"view_b": np.array([None, {}])}, "not a readable .npz"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change: dict, said: str) -> None:
    arrays = {**match_arrays(4, 0, 3.0), **change}
    path = tmp_path / "matches.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(UserError) as error:
        read_matches(path)
    assert str(path) in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "matches.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"matches\.npz is not a readable"):
        read_matches(path)


def test_cells_are_drawn_where_they_are(examples: list[MatchExample]) -> None:
    """A 3 x 5 grid: the circles of view a and squares of view b, and both true positions on the seed."""
    base, (rows, columns) = examples[1], (3, 5)
    index = np.arange(15)[::-1].copy()
    matches = Matches(index, np.arange(15.0), np.arange(15) < 6)
    example = MatchExample(
        base.seed, base.views, base.boxes, base.flips, (rows, columns), dict.fromkeys(KINDS, matches)
    )
    views, seed = match_figure(example, "location").axes[:2]
    left = views.get_images()[1].get_extent()[0]
    assert left > 1
    in_views, on_seed = ([np.asarray(c.get_offsets()) for c in axes.collections[-2:]] for axes in (views, seed))
    for i in range(6):
        j = index[i]
        assert in_views[0][i] == pytest.approx(((i % 5 + 0.5) / 5, (i // 5 + 0.5) / 3))
        assert in_views[1][i] == pytest.approx((left + (j % 5 + 0.5) / 5, (j // 5 + 0.5) / 3))
        for view, cell in enumerate((i, j)):
            expected = loop_centres(example.boxes[view], bool(example.flips[view]), (rows, columns))[cell]
            assert on_seed[view][i] == pytest.approx(expected)
