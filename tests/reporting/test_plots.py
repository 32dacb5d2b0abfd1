"""Figures hold the numbers they are made from."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting import plots
from ssl_toolkit.reporting.compare import compare
from ssl_toolkit.reporting.masks import VOID, read_examples
from ssl_toolkit.reporting.runs import RunFolder
from tests.reporting.synthetic_runs import CLASSES, make_run


def test_columns_loss_first_rate_and_speed_last(runs: list[Path]) -> None:
    folders = [RunFolder.read(path) for path in runs]
    columns = plots.curve_columns(folders)
    assert columns[0] == "loss"
    assert columns[-2:] == ["lr", "images_per_second"]
    assert {"global_invariance", "local_covariance"} <= set(columns)
    assert not {"step", "epoch"} & set(columns)


def test_a_curve_shows_the_logged_values(run: Path) -> None:
    folder = RunFolder.read(run)
    line = plots.curve_panel([folder], "images_per_second").axes[0].lines[-1]
    keep = np.isfinite(folder.metrics["images_per_second"])
    assert 0 < keep.sum() < len(keep)
    np.testing.assert_array_equal(line.get_xdata(), folder.metrics["step"][keep])
    np.testing.assert_array_equal(line.get_ydata(), folder.metrics["images_per_second"][keep])


def test_a_run_keeps_its_colour_where_others_have_no_curve(runs: list[Path]) -> None:
    folders = [RunFolder.read(path) for path in runs]
    lines = plots.curve_panel(folders, "local_invariance").axes[0].lines
    assert {to_rgb(line.get_color()) for line in lines} == {to_rgb(plots.series_style(2)[0])}


@pytest.mark.parametrize("count", [3, 40])
def test_running_mean_equals_a_loop(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(count)]
    if count >= 5:
        np.testing.assert_allclose(plots.running_mean(values, 5), expected)
    assert plots.running_mean(values, 5).shape == values.shape
    np.testing.assert_allclose(plots.running_mean(np.ones(count), 5), 1)


def test_a_curve_is_a_legible_png(runs: list[Path]) -> None:
    figure = plots.curve_panel([RunFolder.read(path) for path in runs[1:]], "loss")
    image = Image.open(io.BytesIO(plots.png(figure)))
    assert image.width >= 400
    assert len(figure.axes[0].get_lines()) >= 2


def test_bars_are_the_values(runs: list[Path]) -> None:
    (runs[1] / "results" / "segmentation.json").unlink()
    axes = plots.metric_bars(compare(runs), 2).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [13.8, 0.0, 32.8]
    assert [text.get_text().strip() for text in axes.texts] == ["13.8", "no result", "32.8"]
    assert axes.texts[2].get_weight() == "bold"


@pytest.mark.parametrize("count", [1, 11, 21, 151])
def test_class_colours_differ(count: int) -> None:
    colours = plots.class_colours(count)
    assert colours.shape == (count, 3)
    assert len(np.unique(colours, axis=0)) == count


def test_masks_are_coloured_by_class_and_void_is_white() -> None:
    mask = np.array([[0, 1], [2, VOID]])
    coloured = plots.colour_mask(mask, 3)
    np.testing.assert_array_equal(coloured[:1].reshape(-1, 3), plots.class_colours(2))
    assert coloured[1, 1].tolist() == [255, 255, 255]


def test_mask_grid_has_a_row_for_each_run(runs: list[Path]) -> None:
    examples = [read_examples(path)[0] for path in runs]
    assert all(examples[0].same_images(other) for other in examples)
    rows = {path.name: one.prediction for path, one in zip(runs, examples)}
    figure = plots.mask_grid(examples[0], rows, [0, 5])
    assert len(figure.axes) == 5 * 2
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == [
        "image",
        "truth",
        "untrained",
        "vicreg",
        "vicregl",
    ]
    shown = figure.axes[9].get_images()[0].get_array()
    np.testing.assert_array_equal(shown, plots.colour_mask(examples[2].prediction[5], len(CLASSES)))
    assert plots.png(figure).startswith(b"\x89PNG")


def test_the_legend_names_what_occurs(run: Path) -> None:
    examples = read_examples(run)[0]
    examples.mask[:] = 0
    examples.prediction[:] = 3
    examples.mask[0, 0, 0] = VOID
    assert [name for name, _ in plots.legend_entries(examples)] == ["background", "digit 2", "void"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": np.full((8, 64, 64), 11)}, "mask must hold classes 0 to 10"),
        ({"prediction": np.zeros((8, 64, 64))}, "prediction must hold classes"),
        ({"prediction": np.zeros((7, 64, 64), dtype=int)}, "prediction is (7, 64, 64)"),
        ({"image": np.zeros((8, 64, 64, 3))}, "image is float64"),
        ({"classes": None}, "no array 'classes'"),
    ],
)
def test_broken_examples_are_named(run: Path, change: dict, said: str) -> None:
    path = run / "results" / "segmentation-digit_scenes-examples.npz"
    with np.load(path) as archive:
        arrays = {**archive, **change}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(UserError) as error:
        read_examples(run)
    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_dollar_signs_are_text(tmp_path: Path) -> None:
    path = make_run(tmp_path / r"a$\frac$b", trained=False)
    assert plots.png(plots.metric_bars(compare([path]), 0)).startswith(b"\x89PNG")


def test_pyplot_is_never_loaded(run: Path) -> None:
    plots.png(plots.curve_panel([RunFolder.read(run)], "loss"))
    source = Path(sys.modules[plots.__name__].__file__ or "").parent
    assert not [path for path in source.glob("*.py") if "pyplot" in path.read_text()]


@pytest.mark.parametrize(
    ("column", "title"),
    [
        ("loss", "Loss and probes"),
        ("knn_top1", "Loss and probes"),
        ("pooled_rank", "Collapse monitors"),
        ("embedded_std", "Collapse monitors"),
        ("global_variance", "Terms of the loss"),
        ("location_invariance", "Terms of the loss"),
        ("match_feature_pixels", "Matches"),
        ("lr", "Optimization and speed"),
        ("peak_memory_gib", "Optimization and speed"),
    ],
)
def test_curves_go_under_headings(column: str, title: str) -> None:
    assert plots.curve_group(column) == title
