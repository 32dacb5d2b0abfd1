"""Alarms ring for runs that are lost, and for no other."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ssl_toolkit.cli import main
from ssl_toolkit.criteria import NonFiniteError
from ssl_toolkit.errors import UserError
from ssl_toolkit.methods import VICReg
from ssl_toolkit.training.callbacks import Collapse, Failures, Measures, Schedule
from ssl_toolkit.training.callbacks.alarms import collapse
from ssl_toolkit.training.callbacks.failures import read_failure
from tests.helpers import quick_overrides, random_batch
from tests.training.callbacks.helpers import FakeTrainer, pretrain, rows


def fail_at(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loss be infinite at these steps, counted from 1."""
    original, done = VICReg.compare, [0]

    def compare(self: VICReg, embedded: Any, batch: Any) -> Any:
        done[0] += 1
        if done[0] in steps:
            raise NonFiniteError("embeddings[0] of shape (16, 32) has 3 values that are not finite (NaN or inf)")
        return original(self, embedded, batch)

    monkeypatch.setattr(VICReg, "compare", compare)


def test_three_failed_steps_in_a_row_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at({2, 6, 7, 8}, monkeypatch)
    console = Console(record=True, width=400)
    with pytest.raises(UserError) as stopped:
        pretrain(tmp_path, "monitor.best=loss", console=console)
    run, message = tmp_path / "run", str(stopped.value)
    assert message.startswith("the loss is not finite at step 8: embeddings[0] of shape (16, 32) has 3 values")
    assert "3 such steps in a row: lower optimizer.lr, raise optimizer.warmup_epochs, or set trainer.clip" in message
    assert f"the last good checkpoint is {run / 'checkpoints' / 'last.ckpt'}" in message
    assert f"the batches are in {run / 'failures'}" in message
    left = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert left["global_step"] == 4  # that of the first epoch's end
    text = console.export_text()
    assert "not finite at step 2:" in text
    assert text.count("the step is left out") == 3
    assert sorted(p.name for p in (run / "failures").iterdir()) == [f"step-00000{i}.pt" for i in (2, 6, 7)]
    table = rows(run)
    assert [row["failed_steps"] for row in table] == ["0", "1", "1", "1", "1", "2", "3"]
    assert [row["step"] for row in table if not row["loss"]] == ["2", "6", "7"]


def test_two_in_a_row_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at({2, 3, 5, 6}, monkeypatch)
    run = pretrain(tmp_path)
    assert rows(run)[-1]["failed_steps"] == "4"
    assert (run / "backbone.safetensors").exists()


def test_the_saved_step_is_what_the_run_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of step 2 and the weights before it, which are those after step 1."""
    with monkeypatch.context() as patch:
        fail_at({2}, patch)
        run = pretrain(tmp_path / "a", "monitor.knn_every=null")
    one = pretrain(tmp_path / "b", "trainer.steps=1")
    failure = read_failure(run / "failures" / "step-000002.pt")
    weights = torch.load(one / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[f"method.{name}"]) for name, value in failure.weights.items())
    assert failure.step == 2
    assert [view.image.dtype for view in failure.batch.views] == [torch.uint8] * 2
    assert failure.batch.views[0].image.shape == (16, 3, 48, 48)
    assert failure.about["precision"] == "fp32"


@pytest.mark.parametrize("method", ["vicreg", "vicregl", "simclr", "simclr_l"])
def test_no_alarm_at_the_start_of_any_method(method: str, tmp_path: Path) -> None:
    run = pretrain(tmp_path, "monitor.patience=1", "optimizer.warmup_epochs=0", "trainer.steps=3", method=method)
    assert len(rows(run)) == 3


@pytest.mark.parametrize("backbone", ["convnext_atto", "vit_tiny_patch16_224"])
def test_no_alarm_at_the_start_of_networks_with_layer_norm(backbone: str, tmp_path: Path) -> None:
    options = ["backbone=timm", f"backbone.name={backbone}", "backbone.image_size=48", "monitor.knn_every=null"]
    if "vit" not in backbone:
        options[2] = "backbone.image_size=null"
    run = pretrain(tmp_path, *options, "monitor.patience=1", "optimizer.warmup_epochs=0", "trainer.steps=2")
    assert len(rows(run)) == 2


COLLAPSING = ["method.terms=i", "data.train_size=256", "trainer.batch_size=32", "trainer.steps=120"]


def test_invariance_alone_collapses_and_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*quick_overrides(tmp_path, "vicreg"), "name=run", "method.expander.widths=[64,64,64]", *COLLAPSING]
    options += ["trainer.log_every=2", "optimizer.lr=1.6", "monitor.knn_every=null", "monitor.patience=3"]
    assert main(["pretrain", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the run has collapsed: the embeddings of all images are about the same")
    assert len(error.strip().splitlines()) == 1
    table = rows(tmp_path / "run")
    assert len(table) < 60
    assert float(table[-1]["embedded_std"]) < 0.05 * float(table[0]["embedded_std"])


HEALTHY = {"pooled_spread": 0.4, "pooled_rank": 25.0, "embedded_std": 0.3, "embedded_spread": 0.8}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"pooled_rank": 2.1, "pooled_spread": 0.06}, None),
        ({"embedded_std": 1e-6, "embedded_spread": 0.9}, None),  # SimCLR does not care for the scale
        ({"embedded_spread": 0.1}, None),  # a mean far from zero, as VICReg allows
        ({"pooled_spread": 0.04}, "representations of all images point the same way"),
        ({"embedded_spread": 0.04}, "embeddings of all images point the same way"),
        ({"pooled_rank": 1.9}, "lie on one line"),
        ({"embedded_std": 0.01, "embedded_spread": 0.2}, "are about the same"),
    ],
)
def test_what_a_collapse_is(change: dict[str, float], said: str | None) -> None:
    found = collapse({**HEALTHY, **change}, 0.3)
    assert (found is None) if said is None else (said in str(found))
    assert collapse({"pooled_spread": 0.4, "pooled_rank": 25.0}, 0.0) is None  # a method without a global head


def watch(collapsed: list[bool], *, warmup: int = 2, patience: int = 3, stop: bool = True) -> tuple[int | None, str]:
    """The step that raises, with a row after every step; and what is printed."""
    measures = Measures(Schedule(1, 100, 100), 16)
    console = Console(record=True, width=300)
    alarm = Collapse(
        Path("run"), measures, measures.schedule, warmup=warmup, patience=patience, stop=stop, console=console
    )
    for step, bad in enumerate(collapsed, 1):
        measures.row = {"step": step, "pooled_std": 1.0, **HEALTHY, **({"pooled_rank": 1.0} if bad else {})}
        if step == 4:  # as after a resume
            state, alarm = alarm.state_dict(), Collapse(**_arguments(alarm))
            alarm.load_state_dict(state)
        try:
            alarm.on_train_batch_end(FakeTrainer(step), None, None, None, 0)  # type: ignore[arg-type]
        except UserError as error:
            return step, str(error)
    return None, console.export_text()


def _arguments(alarm: Collapse) -> dict[str, Any]:
    names = ("run", "measures", "schedule", "warmup", "patience", "stop", "console")
    return {name: getattr(alarm, name) for name in names}


def test_patience_counts_rows_after_the_warm_up() -> None:
    step, text = watch([True] * 9)
    assert step == 5
    assert "there is no checkpoint yet" in text
    assert watch([False, False, True, True, False, True, True, True])[0] == 8
    assert watch([True, True, True, True, False, True, True])[0] is None
    assert watch([False] * 9)[0] is None
    step, text = watch([True] * 9, stop=False)
    assert step is None
    assert text.count("the run has collapsed") == 1


def test_a_batch_that_cannot_be_saved_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "failures").write_text("in the way")
    console = Console(record=True, width=300)
    failures = Failures(tmp_path, {}, console)
    module = type("Module", (), {"method": torch.nn.Linear(2, 2)})()
    outputs = {"failure": "because"}
    failures.on_train_batch_end(FakeTrainer(7), module, outputs, random_batch(), 0)  # type: ignore[arg-type]
    assert failures.columns() == {"failed_steps": 1}
    assert "its batch is not saved: cannot write" in console.export_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vicreg", "vicregl", "simclr", "simclr_l"])
def test_no_alarm_in_the_digits_experiments(method: str, tmp_path: Path) -> None:
    assert main(["pretrain", f"experiment=digits_{method}", f"runs_dir={tmp_path}", "name=run"]) == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert not [row["step"] for row in table if collapse({k: float(v) for k, v in row.items() if v}, 0.3)]
