"""TensorBoard and Weights & Biases get the rows of ``metrics.csv``."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ssl_toolkit import training
from ssl_toolkit.config import compose_config
from ssl_toolkit.errors import UserError
from ssl_toolkit.training.callbacks import MetricsFile
from tests.helpers import quick_overrides
from tests.training.callbacks.helpers import pretrain, rows


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@needs("tensorboard")
def test_tensorboard_has_the_rows_and_the_views(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = pretrain(tmp_path, "monitor.loggers=[tensorboard]")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name in ("loss", "pooled_rank", "lr"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-5)) for row in rows(run)]
    assert [event.step for event in events.Scalars("knn_top1")] == [4, 8]
    assert len(events.Images("views")) == 1


class FakeWandb(types.ModuleType):
    """Keeps what a run would send."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[dict[str, Any]] = []
        self.__spec__ = importlib.util.spec_from_loader("wandb", None)

    def init(self, **options: Any) -> FakeWandb:
        self.runs.append({"options": options, "logged": [], "finished": 0, "metrics": []})
        return self

    def log(self, row: dict[str, Any]) -> None:
        self.runs[-1]["logged"].append(row)

    def define_metric(self, *args: Any, **options: Any) -> None:
        self.runs[-1]["metrics"].append((args, options))

    def finish(self) -> None:
        self.runs[-1]["finished"] += 1

    @staticmethod
    def Image(path: str) -> tuple[str, str]:
        return ("image", path)

    Settings = dict


class Killed(Exception):
    """Stands for whatever stops a run."""


def test_wandb_has_the_rows_and_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    options = ["monitor.loggers=[wandb]", "monitor.wandb.project=digits", "monitor.wandb.entity=us"]
    with monkeypatch.context() as patch:
        original = MetricsFile.on_train_batch_end

        def stopping(self: MetricsFile, trainer: Any, *args: Any) -> None:
            original(self, trainer, *args)
            if trainer.global_step == 6:
                raise Killed

        patch.setattr(MetricsFile, "on_train_batch_end", stopping)
        with pytest.raises(Killed):
            pretrain(tmp_path, *options)
    run = tmp_path / "run"
    training.resume(run, training.read_run_config(run))
    first, second = fake.runs
    assert first["options"]["project"] == "digits"
    assert first["options"]["entity"] == "us"
    assert first["options"]["mode"] == "online"
    assert first["options"]["name"] == "run"
    assert first["options"]["config"]["method"]["name"] == "vicreg"
    assert first["options"]["id"] == second["options"]["id"]
    assert first["finished"] == second["finished"] == 1
    assert first["logged"][0] == {"views": ("image", str(run / "examples" / "views.png"))}
    assert [row["step"] for row in first["logged"][1:]] == [1, 2, 3, 4, 5]
    table = rows(run)
    logged = second["logged"]
    assert logged[0]["step"] in (5, 6)  # after the checkpoint; no second picture
    assert [f"{row['loss']:.6g}" for row in logged] == [row["loss"] for row in table[-len(logged) :]]


def test_a_logger_that_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    fake.init = lambda **_: (_ for _ in ()).throw(RuntimeError("api_key not configured\nmore"))  # type: ignore[assignment,method-assign]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError, match=r"wandb does not start \(api_key not configured\): run 'wandb login'"):
        pretrain(tmp_path, "monitor.loggers=[wandb]")


@needs("wandb")
def test_wandb_offline_leaves_a_run_to_sync(tmp_path: Path) -> None:
    run = pretrain(tmp_path, "monitor.loggers=[wandb]", "monitor.wandb.mode=offline", "trainer.steps=2")
    assert len(list((run / "wandb").glob("offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_said_before_any_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    config = compose_config("pretrain", [*quick_overrides(tmp_path), f"monitor.loggers=[{name}]"])
    with pytest.raises(UserError, match=rf"monitor\.loggers: {name} is not installed: pip install {name}"):
        training.assemble(config)
    assert not list(tmp_path.iterdir())
