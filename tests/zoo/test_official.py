"""The converted official backbones compute what the published code computes."""

from __future__ import annotations

import json
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_toolkit.backbones import create_backbone
from ssl_toolkit.errors import UserError
from tests.zoo.importing import OFFICIAL_ARCHITECTURES, convert_official, load_official

GOLDEN = Path(__file__).parents[1] / "golden"
ARCHITECTURES = ["resnet50", "convnext_small"]


def filled(name: str, shape: list[int]) -> Tensor:
    """The tensor that the rule of golden/README.md gives for a name and a shape."""
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "running_var":
        a = np.abs(a) * 0.2 + 0.8
    elif last == "running_mean":
        a = 0.1 * a
    elif len(shape) == 1:
        a = 1 + 0.1 * a if last in ("weight", "gamma") else 0.1 * a
    else:
        a = a * math.sqrt(1 / math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(a, dtype=np.float32))


def golden(arch: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"official_{arch}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def shapes(arch: str) -> dict[str, list[int]]:
    return json.loads(str(golden(arch)["state_dict"]))


@cache
def official(arch: str) -> dict[str, Tensor]:
    """The official state dict, its weights filled by the rule."""
    return {name: filled(name, shape) for name, shape in shapes(arch).items()}


def empty(arch: str) -> dict[str, Tensor]:
    """The official state dict without numbers."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes(arch).items()}


def assert_golden(backbone: torch.nn.Module, arch: str) -> None:
    expected = golden(arch)
    with torch.no_grad():
        features = backbone(torch.from_numpy(expected["image"]))
    assert features.maps.shape[2:] == (2, 3)  # 64x96 pixels: rows first, so a transposed order would show
    maps = features.maps.flatten(2).transpose(1, 2)
    scale = np.abs(expected["maps"]).max()
    np.testing.assert_allclose(maps.numpy(), expected["maps"], rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(features.pooled.numpy(), expected["pooled"], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bare_backbone_gives_the_official_features(tmp_path: Path, arch: str) -> None:
    torch.save(official(arch), tmp_path / "backbone.pth")
    backbone = load_official(tmp_path / "backbone.pth", arch)
    assert not backbone.training
    assert backbone.config.name == OFFICIAL_ARCHITECTURES[arch]
    assert_golden(backbone, arch)


def test_training_checkpoint_gives_the_official_features(tmp_path: Path) -> None:
    arch = "resnet50"
    model = {f"module.backbone.{name}": value for name, value in official(arch).items()}
    heads = {f"module.{head}.0.weight": torch.ones(2, 2) for head in ("projector", "maps_projector", "classifier")}
    optimizer = {"state": {0: {"mu": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    path = tmp_path / "model.pth"
    torch.save({"epoch": 3, "model": {**model, **heads}, "optimizer": optimizer}, path)
    assert_golden(load_official(path, arch), arch)

    torch.save({"model": {**model, "module.teacher.weight": torch.ones(1)}}, path)
    with pytest.raises(UserError, match=r"unknown weights teacher.weight"):
        load_official(path, arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_weight_matters(arch: str) -> None:
    """A weight dropped, added or of another shape is an error that names it."""
    weights = empty(arch)
    some = list(weights)[-1]
    with pytest.raises(UserError, match="no weights for"):
        convert_official({name: value for name, value in weights.items() if name != some}, arch)
    with pytest.raises(UserError, match=r"unknown weights fc\.weight"):
        convert_official({**weights, "fc.weight": torch.zeros(2, 2)}, arch)
    with pytest.raises(UserError, match=rf"{some} is \(7,\), not"):
        convert_official({**weights, some: torch.zeros(7)}, arch)


def test_layer_scale_is_not_dropped_in_silence() -> None:
    with pytest.raises(UserError, match=r"unknown weights stages\.0\.0\.gamma"):
        convert_official({**empty("convnext_small"), "stages.0.0.gamma": torch.ones(96)}, "convnext_small")


def test_one_architecture_is_not_taken_for_another() -> None:
    with pytest.raises(UserError, match="not the official resnet50: unknown weights"):
        convert_official(empty("convnext_small"), "resnet50")
    with pytest.raises(UserError, match=r"not the official convnext_base: .* is \("):
        convert_official(empty("convnext_small"), "convnext_base")


@pytest.mark.parametrize(("arch", "width"), [("convnext_base", 128), ("convnext_xlarge", 256)])
def test_wider_convnexts_convert(arch: str, width: int) -> None:
    """They are the small one at another width, so its names and scaled shapes are theirs."""
    scaled = {
        name: torch.empty([n // 96 * width if n % 96 == 0 else n for n in shape], device="meta")
        for name, shape in shapes("convnext_small").items()
    }
    converted = convert_official(scaled, arch)
    with torch.device("meta"):
        backbone = create_backbone(OFFICIAL_ARCHITECTURES[arch])
    assert converted.keys() == backbone.state_dict().keys()


class Marker:
    """A class that only a real unpickling could restore."""


def test_files_that_do_not_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_official(tmp_path / "none.pth", "resnet50")
    path = tmp_path / "bad.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="does not load as plain tensors"):
        load_official(path, "resnet50")
    torch.save({"model": Marker()}, path)
    with pytest.raises(UserError, match="does not load as plain tensors") as caught:
        load_official(path, "resnet50")
    assert "\n" not in str(caught.value)
    for content in ([1, 2], {"model": [1]}, {"epoch": 3}):
        torch.save(content, path)
        with pytest.raises(UserError, match="holds neither a state dict"):
            load_official(path, "resnet50")
