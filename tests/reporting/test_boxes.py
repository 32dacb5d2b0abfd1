"""True and predicted boxes in reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting import plots
from ssl_toolkit.reporting.boxes import box_figure, read_boxes
from ssl_toolkit.reporting.report import write_report
from tests.reporting.synthetic_runs import make_run


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    true = np.array([[0, 1, 4, 4, 20, 24], [1, 0, 2, 2, 30, 30]], dtype=np.float32)
    predicted = np.array(
        [[0, 1, 5, 5, 20, 24, 0.9], [0, 0, 1, 1, 9, 9, 0.31], [0, 0, 1, 1, 9, 9, 0.2], [1, 1, 2, 2, 30, 30, 0.1],
         [1, 1, 2, 2, 9, 9, 0.05]], dtype=np.float32,
    )  # fmt: skip
    images = rng.integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    return {"image": images, "true": true, "predicted": predicted, "classes": np.array(["cat", "dog"]), **changes}


def run_with(folder: Path, name: str = "detection-pets", **changes: np.ndarray) -> Path:
    run = make_run(folder)
    np.savez(run / "results" / f"{name}-examples.npz", **arrays(**changes))  # type: ignore[arg-type]
    return run


def test_certain_boxes_are_drawn_or_else_the_best_one(tmp_path: Path) -> None:
    (examples,) = read_boxes(run_with(tmp_path / "run"))
    assert examples.title == "detection on pets"
    np.testing.assert_allclose(examples.shown(0)[:, 6], [0.9, 0.31])
    np.testing.assert_allclose(examples.shown(1)[:, 6], [0.1])
    assert len(examples.shown(2)) == 0


def test_the_figure_names_every_box(tmp_path: Path) -> None:
    (examples,) = read_boxes(run_with(tmp_path / "run"))
    figure = box_figure(examples, range(3))
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sorted(words) == sorted(["dog", "cat", "dog 0.90", "cat 0.31", "dog 0.10"])
    assert len(plots.png(figure)) > 1000


def test_the_report_has_them(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", "detection_finetune-fpn-pets")
    page = write_report(run).read_text()
    assert "Detected objects" in page
    assert "detection_finetune-fpn on pets" in page
    assert "Images 1 to 3 of 3 with true and predicted boxes" in page
    assert "Detected objects" not in write_report(make_run(tmp_path / "other")).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"true": np.zeros((2, 5), np.float32)}, "rows of 6 numbers"),
        ({"predicted": np.full((1, 7), 9, np.float32)}, "predicted names an image or a class that is not there"),
        ({"image": np.zeros((3, 32, 32), np.uint8)}, "expected uint8"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    run = run_with(tmp_path / "run", **changes)
    with pytest.raises(UserError, match=message) as error:
        read_boxes(run)
    assert "detection-pets-examples.npz" in str(error.value)
