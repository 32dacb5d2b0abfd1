"""``ssl-toolkit init`` and experiments that are files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ssl_toolkit.cli import main
from ssl_toolkit.config import compose_config, leaf_keys, override_of
from ssl_toolkit.errors import UserError
from ssl_toolkit.methods import METHODS
from tests.test_cli import error_of, write_photos


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.command
@pytest.mark.parametrize("name", ["photos.yaml", "my first.yaml"])
def test_the_starter_config_trains(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(home / "my photos", classes=2, each=12)
    assert main(["init", name, "--images", "my photos"]) == 0
    said = capsys.readouterr().out
    assert f"config   {name}" in said
    if name == "my first.yaml":
        assert """next     ssl-toolkit pretrain 'experiment="my first.yaml"'""" in said
        assert compose_config("pretrain", ['experiment="my first.yaml"']).data.root == "my photos"
        return
    small = ["views=small", "trainer.batch_size=8", "trainer.steps=2", "trainer.workers=0", "name=one"]
    assert main(["pretrain", f"experiment={name}", *small]) == 0
    config: Any = OmegaConf.load(home / "runs" / "one" / "config.yaml")
    assert (config.data.root, config.method.name, config.backbone.name) == ("my photos", "vicregl", "resnet18")
    assert (home / "runs" / "one" / "backbone.safetensors").exists()


def test_the_starter_config_is_commented_and_says_the_defaults(home: Path) -> None:
    assert main(["init"]) == 0
    text = (home / "experiment.yaml").read_text()
    body = [line for line in text.splitlines() if re.match(r"  (\w+|- override)", line)]
    assert all(" # " in line for line in body if "weight_decay" not in line and "/data:" not in line)
    given = OmegaConf.create({k: v for k, v in OmegaConf.load(home / "experiment.yaml").items() if k != "defaults"})
    composed = compose_config("pretrain", ["experiment=experiment.yaml"])
    plain = compose_config("pretrain", ["data=folder"])
    for key in leaf_keys(given):
        assert OmegaConf.select(composed, key) == OmegaConf.select(given, key)
        if key != "data.root":
            assert OmegaConf.select(given, key) == OmegaConf.select(plain, key), key
    assert composed.views == plain.views
    assert set(METHODS.names()) <= set(re.findall(r"\w+", text))
    assert "experiment=experiment.yaml" in text


def test_init_refuses(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "a.yaml").write_text("mine")
    assert "is there already" in error_of(capsys, "init", "a.yaml")
    assert (home / "a.yaml").read_text() == "mine"
    assert "must end in" in error_of(capsys, "init", "a")
    assert "no such folder" in error_of(capsys, "init", "b.yaml", "--images", "nowhere")
    assert not (home / "b.yaml").exists()


def written(home: Path, text: str) -> list[str]:
    path = home / "deep" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return [override_of("experiment", path)]


def test_a_file_chooses_and_sets_and_the_command_line_wins(home: Path) -> None:
    mine = written(
        home,
        "defaults:\n  - override /backbone: resnet50\n  - override /method: simclr\n  - _self_\n"
        "method: {temperature: 0.5}\ntrainer: {epochs: 3}\n",
    )
    config = compose_config("pretrain", mine)
    assert (config.backbone.name, config.method.temperature, config.trainer.epochs) == ("resnet50", 0.5, 3)
    config = compose_config("pretrain", ["trainer.epochs=4", *mine, "backbone=resnet18"])
    assert (config.backbone.name, config.trainer.epochs) == ("resnet18", 4)
    assert compose_config("pretrain").trainer.epochs == 100  # nothing of it is left


def test_a_file_may_start_from_an_experiment_of_ours(home: Path) -> None:
    config = compose_config("pretrain", written(home, "defaults: [digits_vicregl]\nmethod: {alpha: 0.5}\n"))
    assert (config.backbone.name, config.method.alpha) == ("tiny_resnet", 0.5)
    assert list(config.method.expander.widths) == [512, 512, 512]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {epochs: [3}", r"mine.yaml, line 1: .*YAML as ssl-toolkit init writes it"),
        ("- a\n- b\n", "mine.yaml: holds no keys"),
        ("", "unknown|holds no keys|^$"),
        ("tariner: {epochs: 3}", "mine.yaml: unknown key 'tariner': did you mean 'trainer'"),
        ("method: simclr", "method: simclr sets no key; choose it by '- override /method: simclr'"),
        ("trainer: 3", "trainer: 3 sets no key; it is a section"),
        ("defaults: {method: simclr}", "defaults is a list"),
        ("defaults: [method: simclr]", "write '- override /GROUP: NAME'"),
        ("defaults: [override /backbone: resnet51]", "unknown backbone 'resnet51': did you mean 'resnet50'"),
        ("defaults: [override /spine: resnet50]", "there is no group 'spine'"),
        ("defaults: [digit]", "unknown experiment 'digit': did you mean 'digits'"),
    ],
)
def test_mistakes_in_a_file_name_it(text: str, message: str, home: Path) -> None:
    mine = written(home, text)
    if not text:
        compose_config("pretrain", mine)  # an empty file sets nothing
        return
    with pytest.raises(UserError, match=message) as caught:
        compose_config("pretrain", mine)
    assert "\n" not in str(caught.value)


def test_a_wrong_key_in_a_section_stops_before_any_work(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mine.yaml").write_text("defaults: [digits_vicregl]\ntrainer: {epoch: 3}\n")
    assert "unknown key 'trainer.epoch': did you mean 'epochs'" in error_of(capsys, "pretrain", "experiment=mine.yaml")
    assert "there is no such file; ssl-toolkit init x.yaml" in error_of(capsys, "pretrain", "experiment=x.yaml")
    assert "mine.yaml is experiment=mine.yaml" in error_of(capsys, "pretrain", "experiment=mine")
    assert not (home / "runs").exists()


@pytest.mark.command
def test_files_can_be_swept(home: Path) -> None:
    for name, alpha in (("a", 0.5), ("b", 1.0)):
        (home / f"{name}.yaml").write_text(f"defaults: [digits_vicregl]\nmethod: {{alpha: {alpha}}}\n")
    quick = ["data.train_size=32", "data.val_size=16", "data.test_size=16", "trainer.steps=1", "trainer.batch_size=16"]
    argv = [
        "pretrain",
        "-m",
        "experiment=a.yaml,b.yaml",
        *quick,
        "trainer.workers=0",
        "monitor.knn_every=null",
        "name=s",
    ]
    assert main(argv) == 0
    found = {path.name: OmegaConf.load(path / "config.yaml").method.alpha for path in (home / "runs").iterdir()}  # type: ignore[union-attr]
    assert found == {"s-experiment-a.yaml": 0.5, "s-experiment-b.yaml": 1.0}
    assert json.loads((home / "runs" / "s-experiment-a.yaml" / "environment.json").read_text())
