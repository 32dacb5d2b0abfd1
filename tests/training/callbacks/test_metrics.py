"""Rows of ``metrics.csv``: what they hold against other computations, and when they are made."""

from __future__ import annotations

import csv
import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_toolkit import training
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.callbacks import Measures, MetricsFile, Schedule, metrics
from tests.helpers import quick_overrides
from tests.training.callbacks.helpers import FakeTrainer, pretrain, rows

SGD = ["optimizer=sgd", "~optimizer.trust_coefficient", "optimizer.momentum=0", "optimizer.weight_decay=0"]
SGD += ["optimizer.warmup_epochs=0.5"]


def test_gradient_norm_and_rate_are_those_of_the_step(tmp_path: Path) -> None:
    """Without momentum and decay a step moves the weights by the rate times the gradient."""
    overrides = [*SGD, "optimizer.lr=0.01", "trainer.steps=1", "method.expander.widths=[32,32]"]
    config = compose_config("pretrain", [*quick_overrides(tmp_path, "vicreg"), *overrides])
    before = torch.cat([p.detach().flatten() for p in training.assemble(config).method.parameters()])
    run = pretrain(tmp_path, *SGD, "optimizer.lr=0.01", "trainer.steps=1", "monitor.linear=false")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    names = [f"method.{name}" for name, _ in training.assemble(config).method.named_parameters()]
    moved = float((torch.cat([state[name].flatten() for name in names]) - before).norm())
    row = rows(run)[0]
    assert float(row["lr"]) * float(row["gradient_norm"]) == pytest.approx(moved, rel=1e-3)
    assert float(row["weight_decay"]) == 0.0


def test_a_run_has_every_column(tmp_path: Path) -> None:
    run = pretrain(tmp_path, method="vicregl")
    table = rows(run)
    assert [row["step"] for row in table] == [str(i) for i in range(1, 9)]
    measured = {f"{x}_{y}" for x in ("pooled", "embedded") for y in ("std", "spread", "rank", "correlation")}
    terms = {"global_invariance", "global_variance", "global_covariance", "match_location_pixels"}
    others = {"loss", "lr", "weight_decay", "gradient_norm", "images_per_second", "waiting_share", "failed_steps"}
    for row in table:
        assert all(row[name] for name in measured | terms | others)
        assert 1 <= float(row["pooled_rank"]) <= 16  # images of a step
        assert 0 < float(row["waiting_share"]) <= 1  # with workers=0 views are made between steps
        assert row["failed_steps"] == "0"
    assert [bool(row["knn_top1"]) for row in table] == [step in (4, 8) for step in range(1, 9)]


def test_nothing_is_measured_on_other_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for module, name in ((metrics, "effective_rank"), (metrics, "std_of"), (torch.nn.utils, "get_total_norm")):
        original = getattr(module, name)

        def counting(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)
    run = pretrain(tmp_path, "trainer.log_every=3", "monitor.knn_every=null")
    assert [row["step"] for row in rows(run)] == ["1", "3", "6", "8"]
    assert calls.count("get_total_norm") == 4
    assert calls.count("effective_rank") == calls.count("std_of") == 8  # representations and embeddings


def write(path: Path, given: list[dict[str, float]]) -> MetricsFile:
    measures = Measures(Schedule(1, 10, 100), 16)
    file = MetricsFile(path, measures)
    for row in given:
        measures.row = row
        file.on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
    return file


def test_columns_that_turn_up_later_are_added(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write(path, [{"step": 1, "loss": 0.5}, {"step": 2, "knn": 10.0, "loss": 1 / 3}, {"step": 3, "loss": 2.0}])
    with path.open() as file:
        assert list(csv.reader(file)) == [
            ["step", "loss", "knn"],
            ["1", "0.5", ""],
            ["2", "0.333333", "10"],
            ["3", "2", ""],
        ]


def test_a_resumed_file_keeps_its_columns_and_no_later_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,old,loss\n1,7,0.5\n2,8,0.25\n3,9,0.1\n4,1")  # the last cut short by a kill
    measures = Measures(Schedule(1, 10, 100), 16)
    file = MetricsFile(path, measures)
    file.on_train_start(FakeTrainer(2), None)  # type: ignore[arg-type]
    measures.row = {"step": 3, "loss": 0.2, "new": 1.0}
    file.on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
    assert path.read_text().splitlines() == ["step,old,loss,new", "1,7,0.5,", "2,8,0.25,", "3,,0.2,1"]


def test_rows_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    file = write(path, [{"step": 1, "loss": 0.5}])
    before = path.read_text()
    with monkeypatch.context() as patch:

        def half(self: Any, rows: list[list[str]]) -> None:
            self.file.write("2,0.")
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

        class Writer:
            def __init__(self, file: Any) -> None:
                self.file = file

            writerows = half

        patch.setattr(csv, "writer", Writer)
        for row in ({"step": 2, "loss": 0.25}, {"step": 3, "loss": 0.125, "knn": 7.0}):
            file.measures.row = row
            file.on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
            assert path.read_text() == before
    stored = file.state_dict()
    assert [row["step"] for row in stored["waiting"]] == ["2", "3"]
    for _ in range(2):  # of a checkpoint from before the rows got into the file, and from after
        resumed = MetricsFile(path, file.measures)
        resumed.load_state_dict(stored)
        resumed.on_train_start(FakeTrainer(3), None)  # type: ignore[arg-type]
        resumed.measures.row = {"step": 4, "loss": 0.0625}
        resumed.on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
        assert path.read_text().splitlines() == ["step,loss,knn", "1,0.5,", "2,0.25,", "3,0.125,7", "4,0.0625,"]
        assert resumed.state_dict() == {}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics\.csv"):
        write(tmp_path / "metrics.csv", [{"step": 1}])
