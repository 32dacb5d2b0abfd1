"""Where an evaluated backbone comes from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssl_toolkit.backbones import BackboneConfig, create_backbone, save_backbone
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation import file_source, run_source, untrained_source

DATA: dict[str, Any] = {"name": "digit_scenes", "train_size": 64, "val_size": 32, "test_size": 32}


def save(path: Path) -> None:
    torch.manual_seed(3)
    save_backbone(path, create_backbone("tiny_resnet"), {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]})


def test_a_file_brings_its_weights_hash_and_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save(path)
    source = file_source(path)
    assert source.name == "weights"
    assert source.preprocessing["mean"] == [0.1, 0.2, 0.3]
    assert source.checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    torch.manual_seed(3)
    expected = create_backbone("tiny_resnet").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in source.backbone.state_dict().items())


def test_a_run_is_named_after_its_folder(tmp_path: Path) -> None:
    save(tmp_path / "good" / "backbone.safetensors")
    assert run_source(tmp_path / "good").name == "good"
    with pytest.raises(UserError, match="does not exist"):
        run_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it is not a run folder"):
        run_source(tmp_path / "empty")
    (tmp_path / "stopped" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="has not finished; continue it with: ssl-toolkit pretrain run="):
        run_source(tmp_path / "stopped")
    with pytest.raises(UserError, match="resnet18"):
        run_source(tmp_path / "good", BackboneConfig(name="resnet18"))


def test_bad_training_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match="does not exist"):
        file_source(path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"last\.ckpt does not load as plain tensors: it is neither"):
        file_source(path)
    (tmp_path / "run" / "config.yaml").write_text(
        "backbone: {name: tiny_resnet}\ndata: {mean: [0, 0, 0], std: [1, 1, 1]}\n"
    )
    with pytest.raises(UserError, match="is not a training checkpoint"):
        file_source(path)
    with pytest.raises(UserError, match="holds tiny_resnet, not resnet18"):
        file_source(path, BackboneConfig(name="resnet18"))
    torch.save({"state_dict": {"method.backbone.stem": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"does not fit tiny_resnet: .*Missing key"):
        file_source(path)


def test_the_untrained_baseline_has_filled_statistics() -> None:
    first, again, other = (untrained_source({"name": "tiny_resnet"}, DATA, seed) for seed in (0, 0, 1))
    assert first.checkpoint_path is None
    norms = [m for m in first.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_var is not None
        assert not torch.equal(norm.running_var, torch.ones_like(norm.running_var))
    state = first.backbone.state_dict()
    assert all(torch.equal(state[k], v) for k, v in again.backbone.state_dict().items())
    assert any(not torch.equal(state[k], v) for k, v in other.backbone.state_dict().items())
