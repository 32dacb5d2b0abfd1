"""Deltas, best values, differing options, and the tables they are written to."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ssl_toolkit.errors import UserError
from ssl_toolkit.reporting.compare import NOT_SET, Comparison, compare, comparison_table, flatten
from tests.reporting.synthetic_runs import make_run, write_results

COLUMNS = ["kNN top-1", "linear top-1", "mIoU", "foreground mIoU", "pixel accuracy"]


def printed(comparison: Comparison, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    comparison.print(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_values_and_deltas_against_the_first(runs: list[Path]) -> None:
    comparison = compare(runs)
    assert [metric.title for metric in comparison.metrics] == COLUMNS
    np.testing.assert_allclose(comparison.values[:, 1], [23.1, 63.2, 70.7])
    np.testing.assert_allclose(comparison.deltas[:, 2], [0, 24.4 - 13.8, 32.8 - 13.8])
    assert comparison.cell(2, 2) == ("32.8", "+19.0")
    assert comparison.cell(0, 2) == ("13.8", "")
    reverse = compare(runs[::-1])
    assert reverse.cell(2, 2) == ("13.8", "-19.0")


def test_best_is_by_what_is_shown(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, trained=False) for name in "abc"]
    for path, score in zip(paths, [70.04, 69.96, 69.8]):
        write_results(path / "results", score, 30.0)
    best = compare(paths).best
    assert best[:, 1].tolist() == [True, True, False]
    assert not compare(paths[:1]).best.any()


def test_only_differing_options_that_say_something(runs: list[Path]) -> None:
    differences = compare(runs).differences
    assert differences["method.name"] == ["none", "vicreg", "vicregl"]
    assert differences["method.alpha"] == [NOT_SET, NOT_SET, "0.75"]
    assert differences["method.gamma"][2] == "[14, 14]"
    assert not {"run_dir", "seed", "optimizer.lr", "data.mean"} & set(differences)


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": {}}) == {
        "a.b.c": "1",
        "a.d": "[1, 2]",
        "e": "null",
        "f": "{}",
    }


def test_selected_hyper_parameters_stand_beside_the_numbers(runs: list[Path]) -> None:
    selected = compare(runs).selected()
    assert selected["linear: selected"] == ["lr 0.1"] * 3
    assert selected["knn: selected"] == ["k 20, temperature 0.07"] * 3


def test_a_missing_result_is_empty_and_never_best(runs: list[Path]) -> None:
    (runs[2] / "results" / "linear.json").unlink()
    comparison = compare(runs)
    assert comparison.cell(2, 1) == ("", "")
    assert comparison.best[:, 1].tolist() == [False, True, False]
    assert compare([runs[2], runs[1]]).cell(1, 1) == ("63.2", "")


def test_other_images_and_other_protocols_are_noted(runs: list[Path]) -> None:
    assert compare(runs).notes == []
    write_results(runs[1] / "results", 63.2, 24.4, fingerprint="other")
    path = runs[2] / "results" / "linear.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": {"batch_size": 32}}))
    notes = " ".join(compare(runs).notes)
    assert "Not the same images: knn on digit_scenes" in notes
    assert "linear on digit_scenes ran with different batch_size" in notes


def test_two_data_sets_have_their_own_columns(run: Path) -> None:
    value = json.loads((run / "results" / "knn.json").read_text())
    (run / "results" / "knn-b.json").write_text(json.dumps({**value, "data": "b", "metrics": {"top1": 1.0}}))
    comparison = compare([run])
    assert [m.title for m in comparison.metrics[:2]] == ["kNN top-1 (b)", "kNN top-1 (digit_scenes)"]
    assert comparison.values[0, :2].tolist() == [1.0, 50.7]


def test_other_protocols_show_all_their_metrics(run: Path) -> None:
    value = {"protocol": "semi_supervised", "data": "digit_scenes", "metrics": {"top1": 40.0, "top5": 80.0}}
    (run / "results" / "semi.json").write_text(json.dumps(value))
    titles = [metric.title for metric in compare([run]).metrics]
    assert titles == [*COLUMNS, "semi supervised top-1", "semi supervised top-5"]


def test_a_run_without_results(tmp_path: Path, run: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text("seed: 1\n")
    comparison = compare([run, bare])
    assert np.isnan(comparison.values[1]).all()
    assert comparison.notes[0].startswith("bare has no results yet")
    assert compare([bare]).values.shape == (1, 0)
    assert "bare" in printed(compare([bare]))


def test_bad_input(run: Path) -> None:
    with pytest.raises(UserError, match="at least one"):
        compare([])
    with pytest.raises(UserError, match="twice"):
        compare([run, run.parent / "." / run.name])


def test_the_table_on_the_terminal(runs: list[Path]) -> None:
    text = printed(compare(runs))
    assert "\x1b[1m32.8" in text  # bold
    assert "+19.0" in text
    assert "method.alpha" in text
    assert comparison_table(compare(runs)).row_count == 3


def test_markup_in_a_name_is_text(tmp_path: Path) -> None:
    path = make_run(tmp_path / "[red]x[", trained=False)
    assert "[red]x[" in printed(compare([path]))


def test_csv(runs: list[Path], tmp_path: Path) -> None:
    (runs[1] / "results" / "knn.json").unlink()
    out = tmp_path / "deep" / "table.csv"
    compare(runs).write_csv(out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["untrained", "vicreg", "vicregl"]
    assert math.isclose(float(rows[2]["mIoU delta"]), 19.0)
    assert rows[1]["kNN top-1"] == rows[1]["kNN top-1 delta"] == ""
    assert rows[2]["method.alpha"] == "0.75"
    assert rows[2]["linear: selected"] == "lr 0.1"


def test_markdown(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a|b", "vicreg", 60, 20, False),
        make_run(tmp_path / "c", "vicregl", 70, 30, False),
    ]
    out = tmp_path / "table.md"
    compare(paths).write_markdown(out)
    lines = out.read_text().splitlines()
    assert lines[0].startswith("| run | kNN top-1 |")
    assert lines[2].startswith("| a\\|b | 40.0 | 60.0 |")
    assert "| **70.0** (+10.0) |" in lines[3]


def test_long_names_fit_a_narrow_terminal(tmp_path: Path) -> None:
    names = ["untrained_resnet_mini_seed_0", *(f"2026-11-21_vicregl_alpha_{i}" for i in range(3))]
    paths = [make_run(tmp_path / name, "vicregl", 60 + i, 30 + i, False) for i, name in enumerate(names)]
    text = printed(compare(paths), width=80)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 80
    assert "run 4" in plain
    assert "+3.0" in plain
