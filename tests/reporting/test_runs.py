"""Reading run folders, and what a broken one says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.runs import RunFolder, read_metrics, unique_labels
from tests.reporting.synthetic_runs import make_run


def one_line(error: pytest.ExceptionInfo[UserError], *names: object) -> None:
    """The message is one line that holds every one of ``names``."""
    message = str(error.value)
    assert "\n" not in message
    for name in names:
        assert str(name) in message


def test_everything_is_read(run: Path) -> None:
    folder = RunFolder.read(run)
    assert folder.label == "vicregl"
    assert folder.config["optimizer"]["lr"] == 1.5e-3
    assert folder.config_text == (run / "config.yaml").read_text()
    assert folder.environment["torch"] == "2.15.0+cpu"
    assert [result.protocol for result in folder.results] == ["knn", "linear", "segmentation"]
    linear = folder.results[1]
    assert linear.metrics == {"top1": 70.7, "top5": 90.7}
    assert (linear.data, linear.selected, linear.seconds) == ("digit_scenes", {"lr": 0.1}, 7.25)
    assert len(linear.grid) == 3


def test_an_empty_cell_is_nan_and_left_out_of_the_curve(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,lr\n0,1.5,\n\n5,,0.1\n10,2.5,0.2\n")
    metrics = read_metrics(path)
    np.testing.assert_array_equal(metrics["loss"], [1.5, math.nan, 2.5])
    np.testing.assert_array_equal(metrics["lr"], [math.nan, 0.1, 0.2])
    folder = make_run(tmp_path / "run", trained=False)
    path.rename(folder / "metrics.csv")
    steps, values = RunFolder.read(folder).curve("loss")
    assert steps.tolist() == [0, 10]
    assert values.tolist() == [1.5, 2.5]


@pytest.mark.parametrize("text", ["", "step,loss\n"])
def test_metrics_without_rows(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    assert all(len(column) == 0 for column in read_metrics(path).values())


def test_only_the_config_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    folder = RunFolder.read(tmp_path)
    assert (folder.metrics, folder.results, folder.environment) == ({}, [], {})


def test_the_newest_result_of_a_protocol_counts(run: Path) -> None:
    old = json.loads((run / "results" / "knn.json").read_text())
    newer = {**old, "metrics": {"top1": 99.0}, "created": "2026-11-22T00:00:00"}
    (run / "results" / "a-again.json").write_text(json.dumps(newer))
    assert RunFolder.read(run).latest()["knn", "digit_scenes"].metrics == {"top1": 99.0}


def test_no_such_folder_names_the_nearest_run(run: Path) -> None:
    with pytest.raises(UserError) as error:
        RunFolder.read(run.parent / "vicreg")
    one_line(error, run.parent / "vicreg", "did you mean 'vicregl'?")


def test_a_folder_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        RunFolder.read(tmp_path)
    one_line(error, tmp_path, "config.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step,loss\n0,1\n5\n", "line 3: 1 cells where the header has 2"),
        ("step,loss\n0,1\n5,abc\n", "line 3: loss is 'abc'"),
        ("epoch,loss\n0,1\n", "no column 'step'"),
        ("step,loss\n,1\n", "empty cell"),
        ("step,loss,loss\n0,1,2\n", "twice"),
    ],
)
def test_a_broken_table_is_named(run: Path, text: str, said: str) -> None:
    (run / "metrics.csv").write_text(text)
    with pytest.raises(UserError) as error:
        RunFolder.read(run)
    one_line(error, run / "metrics.csv", said)


def test_bytes_that_are_no_text(run: Path) -> None:
    (run / "metrics.csv").write_bytes(b"step,loss\n0,\xff\xfe\n")
    with pytest.raises(UserError) as error:
        RunFolder.read(run)
    one_line(error, run / "metrics.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ('{"metrics": {}}', "'protocol'"),
        ('{"protocol": "knn", "metrics": 3}', "'metrics'"),
        ('{"protocol": "knn", "metrics": {"top1": "high"}}', "top1 is 'high'"),
    ],
)
def test_a_broken_result_is_named(run: Path, text: str, said: str) -> None:
    (run / "results" / "knn.json").write_text(text)
    with pytest.raises(UserError) as error:
        RunFolder.read(run)
    one_line(error, run / "results" / "knn.json", said)


@pytest.mark.parametrize("text", ["method: [1\nseed: 2\n", "- 1\n- 2\n"])
def test_a_broken_config_is_named(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        RunFolder.read(run)
    one_line(error, run / "config.yaml")


def test_labels_of_equal_folder_names_grow_until_they_differ(tmp_path: Path) -> None:
    names = ["a/x/0", "a/y/0", "b/x/0", "b/other"]
    folders = [RunFolder.read(make_run(tmp_path / name, trained=False)) for name in names]
    assert unique_labels(folders[:2]) == ["x/0", "y/0"]
    labels = unique_labels(folders)
    assert len(set(labels)) == 4
    assert labels[3] == "other"
