"""The kNN bench as a user runs it: agreement first, then ratios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssl_toolkit.bench import knn, timing
from ssl_toolkit.cli import main
from tests.bench.helpers import TINY
from tests.test_cli import error_of

CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_agree_and_get_ratios(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "knn", *TINY["knn"]]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    result = json.loads((home / "bench-knn.json").read_text())
    assert [c["title"].split(":")[0] for c in result["comparisons"]] == ["k 3", "k 20"]
    for comparison in result["comparisons"]:
        rows = {row["name"]: row for row in comparison["contenders"]}
        assert list(rows) == ["ours", "faiss", "lightly", "sklearn"]
        assert comparison["notes"][0] in printed
        assert "for 40 of 40 queries" in comparison["notes"][0]
        for name, row in rows.items():
            if name == "ours" or "absent" in row:
                continue
            assert row["same_maths"]
            assert row["agreement_float64"] == {"value": 0.0, "gradient": 0.0}
            assert row["ratio"]["median"] > 0


def test_a_contender_with_other_predictions_gets_no_ratio(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = knn._sklearn
    monkeypatch.setattr(knn, "_sklearn", lambda problem, k: lambda: (original(problem, k)() + 1) % 5)
    assert main(["bench", "knn", *TINY["knn"], "contenders=sklearn"]) == 0
    result = json.loads((home / "bench-knn.json").read_text())
    rows = {row["name"]: row for row in result["comparisons"][0]["contenders"]}
    assert list(rows) == ["ours", "sklearn"]
    assert not rows["sklearn"]["same_maths"]
    assert rows["sklearn"]["ratio"] is None


def test_wrong_neighbours_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    options = knn.KnnBenchConfig(bank=200, queries=30, dim=8, classes=4, noise=1.0)
    problem = knn.make_problem(options, 200, 30, CPU)
    assert knn.exact_neighbours(problem, 5) == 30
    original = knn.nearest

    def off(bank: object, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        similarity, index = original(bank, queries, k + 1)
        index[3, 0] = index[3, k]  # one too far
        index[4, 1] = index[4, 0]  # one twice
        return similarity[:, :k], index[:, :k]

    monkeypatch.setattr(knn, "nearest", off)
    assert knn.exact_neighbours(problem, 5) == 28


def test_without_a_rival_its_row_says_how_to_get_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(knn, "missing", lambda names: {"faiss": "not installed (pip install faiss-cpu)"})
    assert main(["bench", "knn", *TINY["knn"], "contenders=faiss,lightly"]) == 0
    assert "faiss: not installed (pip install faiss-cpu)." in capsys.readouterr().out


def test_mistakes_get_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in [
        (["contenders=fais"], "did you mean 'faiss'"),
        (["contenders=[]"], "no contender is named"),
        (["ks=[0]"], "ks must be numbers from 1 to bank=50000"),
        (["ks=[20]", "bank=10"], "ks must be numbers from 1 to bank=10"),
        (["dim=0"], "must be 1 or more"),
        (["temperature=0"], "temperature positive"),
    ]:
        assert message in error_of(capsys, "bench", "knn", *argv), argv
