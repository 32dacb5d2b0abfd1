"""The plot of classification against segmentation."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from ssl_toolkit.reporting import plots
from ssl_toolkit.reporting.compare import compare
from ssl_toolkit.reporting.trade_off import pareto_front, trade_off, trade_off_columns
from tests.reporting.synthetic_runs import make_run


def test_the_front_is_what_no_other_run_beats_in_both() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.integers(0, 6, (8, 2)).astype(float)
        found = {tuple(points[i]) for i in pareto_front(points)}
        beaten = {tuple(p) for p, q in itertools.permutations(points, 2) if (q >= p).all() and (q > p).any()}
        assert found == {tuple(p) for p in points} - beaten
        assert (np.diff(points[pareto_front(points), 0]) >= 0).all()


def test_runs_without_a_number_are_not_on_the_front() -> None:
    points = np.array([[1.0, np.nan], [2.0, 3.0], [np.nan, 9.0]])
    assert pareto_front(points).tolist() == [1]


def test_columns_are_linear_accuracy_and_miou(runs: list[Path], tmp_path: Path) -> None:
    comparison = compare(runs)
    columns = trade_off_columns(comparison)
    assert columns is not None
    assert [comparison.metrics[i].title for i in columns] == ["linear top-1", "mIoU"]
    assert trade_off_columns(compare(runs[:1])) is None
    bare = [make_run(tmp_path / name) for name in "xy"]
    for run in bare:
        for path in (run / "results").glob("segmentation*"):
            path.unlink()
    assert trade_off_columns(compare(bare)) is None


def test_every_run_is_a_named_point(runs: list[Path]) -> None:
    comparison = compare(runs)
    columns = trade_off_columns(comparison)
    assert columns is not None
    figure = trade_off(comparison, columns)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == comparison.labels
    drawn = np.concatenate([np.asarray(points.get_offsets()) for points in axes.collections])
    np.testing.assert_allclose(drawn, comparison.values[:, columns])
    assert len(plots.png(figure)) > 1000


def test_names_of_runs_that_all_but_coincide_do_not_cover_each_other(runs: list[Path]) -> None:
    comparison = compare(runs)
    columns = trade_off_columns(comparison)
    assert columns is not None
    values = comparison.values.copy()
    values[:, columns[0]] = [50.0, *np.linspace(90, 90.3, len(runs) - 1)]
    values[:, columns[1]] = [10.0, *np.linspace(57, 57.2, len(runs) - 1)]
    figure = trade_off(dataclasses.replace(comparison, values=values), columns)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(runs) > 2
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_runs_at_the_same_point_share_a_name(runs: list[Path]) -> None:
    comparison = compare(runs)
    columns = trade_off_columns(comparison)
    assert columns is not None
    values = comparison.values.copy()
    values[1] = values[0]
    (axes,) = trade_off(dataclasses.replace(comparison, values=values), columns).axes
    first, second, *others = comparison.labels
    assert [text.get_text() for text in axes.texts] == [f"{first}, {second}", *others]
