"""Weights written to a file come back bit for bit, and only into the architecture they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ssl_toolkit.backbones import (
    Backbone,
    BackboneConfig,
    create_backbone,
    read_backbone,
    read_metadata,
    save_backbone,
)
from ssl_toolkit.errors import UserError

PREPROCESSING = {"mean": [0.5, 0.25, 0.125], "std": [0.2, 0.2, 0.3], "eval_resize": 64, "eval_size": 56}


def randomised(name: str, **options: object) -> Backbone:
    """A backbone none of whose numbers is a default (BatchNorm's statistics included)."""
    torch.manual_seed(1)
    backbone = create_backbone({"name": name, **options})
    with torch.no_grad():
        for value in backbone.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
            else:
                value.fill_(7)
    return backbone


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny_resnet", {"in_channels": 1}),
        ("resnet18", {"stem": "small"}),
        ("regnety_002", {}),
        ("convnext_atto", {"drop_path": 0.1}),
        ("efficientnet_b0", {}),
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"image_size": 64}),
        ("swin_tiny_patch4_window7_224", {}),
    ],
)
def test_round_trip_is_exact(tmp_path: Path, name: str, options: dict) -> None:
    backbone = randomised(name, **options).to(memory_format=torch.channels_last)
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, backbone, PREPROCESSING, {"run": "r1"})
    loaded, preprocessing = read_backbone(path)
    assert not loaded.training
    assert loaded.config == backbone.config
    assert preprocessing == PREPROCESSING
    expected, found = backbone.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_backbone(path, randomised("tiny_resnet"), PREPROCESSING, {"method": "vicregl"})
    return path


def test_metadata(saved: Path) -> None:
    metadata = read_metadata(saved)
    assert metadata is not None
    assert BackboneConfig(**metadata.config) == BackboneConfig("tiny_resnet")
    assert metadata.preprocessing == PREPROCESSING
    assert metadata.extra == {"method": "vicregl"}
    with safe_open(saved, framework="pt") as file:  # as any other tool would read it
        assert json.loads(file.metadata()["config"])["name"] == "tiny_resnet"


def test_file_loads_into_plain_timm(tmp_path: Path) -> None:
    backbone = randomised("resnet18").eval()
    save_backbone(tmp_path / "b.safetensors", backbone, {})
    plain = timm.create_model("resnet18", num_classes=0).eval()
    plain.load_state_dict(load_file(tmp_path / "b.safetensors"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), backbone(images).pooled)


def test_file_without_metadata_needs_the_architecture(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    backbone = randomised("tiny_resnet")
    save_file(backbone.state_dict(), path)
    assert read_metadata(path) is None
    with pytest.raises(UserError, match="does not say which architecture"):
        read_backbone(path)
    loaded, preprocessing = read_backbone(path, BackboneConfig("tiny_resnet"))
    assert preprocessing == {}
    assert torch.equal(loaded.stem[0].weight, backbone.stem[0].weight)  # type: ignore[index,union-attr]


def test_expected_architecture_is_taken_with_its_own_drop_path(saved: Path) -> None:
    loaded, _ = read_backbone(saved, BackboneConfig("tiny_resnet", drop_path=0.2))
    assert loaded.config.drop_path == 0.2


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        (
            BackboneConfig("resnet18"),
            ["holds tiny_resnet (3 channels)", "not resnet18 (3 channels)", "conv1.weight"],
        ),
        (
            BackboneConfig("tiny_resnet", in_channels=1),
            ["3 channels", "1 channels", "stem.0.weight is (32, 3, 3, 3)"],
        ),
    ],
)
def test_another_architecture_is_refused(saved: Path, expect: BackboneConfig, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_backbone(saved, expect)
    message = str(caught.value)
    assert str(saved) in message
    assert "\n" not in message
    assert message.count(";") <= 3  # three weights and how many more
    for word in words:
        assert word in message


def test_stem_is_part_of_the_architecture(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_backbone(path, create_backbone({"name": "resnet18", "stem": "small"}), {})
    with pytest.raises(UserError, match=r"resnet18 \(3 channels, stem small\), not resnet18 \(3 channels\)"):
        read_backbone(path, BackboneConfig("resnet18"))


def test_other_image_size_of_a_vit_is_refused_by_shape(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_backbone(path, create_backbone({"name": "vit_tiny_patch16_224", "image_size": 32}), {})
    with pytest.raises(UserError, match=r"pos_embed is \(1, 5, 192\), not \(1, 197, 192\)"):
        read_backbone(path, BackboneConfig("vit_tiny_patch16_224"))


def test_incomplete_file_is_refused(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    tensors["extra.weight"] = tensors.pop("stem.0.weight")
    save_file(tensors, saved, metadata)
    with pytest.raises(
        UserError, match=r"no complete tiny_resnet .*stem.0.weight is missing; extra.weight is not part"
    ):
        read_backbone(saved)


def rewrite(path: Path, **metadata: str) -> None:
    with safe_open(path, framework="pt") as file:
        stored = file.metadata()
    save_file(load_file(path), path, {**stored, **metadata})


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"ssl_toolkit_backbone": "2"}, "format 2, this version reads 1"),
        ({"config": "{"}, "'config' is not valid JSON"),
        ({"config": "[1]"}, "'config' is not a mapping"),
        ({"config": '{"name": "no_such_net"}'}, "cannot be built here: unknown backbone 'no_such_net'"),
    ],
)
def test_broken_metadata_is_refused(saved: Path, metadata: dict, words: str) -> None:
    rewrite(saved, **metadata)
    with pytest.raises(UserError, match=words):
        read_backbone(saved)


def test_files_that_are_no_backbones(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_backbone(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        read_metadata(tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pickle.safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_backbone(tmp_path / "pickle.safetensors")
    saved.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged"):
        read_backbone(saved)


def test_failed_write_keeps_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(ValueError, match="reserved"):
        save_backbone(saved, create_backbone("tiny_resnet"), {}, {"config": "x"})
    with pytest.raises(ValueError):
        save_backbone(saved, create_backbone("tiny_resnet"), {"mean": [float("nan")]})
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
