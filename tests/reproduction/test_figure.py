"""The picture of a study: what it shows, and that its labels can be read."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure

from ssl_toolkit.reproduction import read_study
from ssl_toolkit.reproduction.figure import trade_off_figure
from ssl_toolkit.reproduction.summary import Summary


def summary_of(name: str, spread: float = 1.5, seeds: int = 3) -> Summary:
    study = read_study(name)
    rng = np.random.default_rng(0)
    values = {
        row.name: {
            "classification": list(75 + rng.normal(0, spread) + rng.normal(0, 0.5, seeds)),
            "segmentation": list(35 + rng.normal(0, spread) + rng.normal(0, 0.5, seeds)),
            "time": [1.0] * seeds,
        }
        for row in study.rows
    }
    return Summary(study, "mini", list(range(seeds)), values)


def drawn(figure: Figure) -> list[dict[str, tuple[float, float]]]:
    """For each panel the point that each name stands at."""
    return [{text.get_text(): tuple(text.xy) for text in axes.texts} for axes in figure.axes]  # type: ignore[attr-defined]


def test_ours_and_the_papers_points_are_where_the_numbers_say() -> None:
    summary = summary_of("figure2")
    figure = trade_off_figure(summary)
    assert figure is not None
    ours, paper = drawn(figure)
    for row in summary.study.rows:
        means = [np.mean(summary.values[row.name][column]) for column in ("classification", "segmentation")]
        assert ours[row.name] == pytest.approx(means)
        assert paper[row.name] == (row.paper["classification"], row.paper["segmentation"])
    joined = [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert np.allclose(joined, list(ours.values()))  # in the order of rows
    bars = [child.get_segments()[0] for child in figure.axes[0].collections]
    widths = sorted(float(np.ptp(bar, axis=0).max()) / 2 for bar in bars)
    errors = [summary.mean(r.name, c).error for r in summary.study.rows for c in ("classification", "segmentation")]
    assert widths == pytest.approx(sorted(errors))


@pytest.mark.parametrize("name", ["table3", "table5"])
@pytest.mark.parametrize("spread", [0.1, 1.5])
def test_labels_do_not_cover_each_other(name: str, spread: float) -> None:
    figure = trade_off_figure(summary_of(name, spread))
    assert figure is not None
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 4
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        assert all(axes.get_tightbbox().containsx(box.x0) for box in boxes)


def test_rows_without_results_and_studies_without_the_papers_numbers() -> None:
    summary = summary_of("grid", seeds=1)
    values = summary.values[summary.study.rows[0].name]
    values["segmentation"] = [math.nan]
    figure = trade_off_figure(summary)
    assert figure is not None
    (ours,) = drawn(figure)
    (name,) = ours
    assert name.startswith("flip-aware")
    summary.values[summary.study.rows[1].name]["segmentation"] = [math.nan]
    assert trade_off_figure(summary) is None
    assert trade_off_figure(summary_of("table11")) is None
    assert trade_off_figure(summary_of("figure3")) is None  # a single row
