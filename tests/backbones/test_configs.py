"""Every backbone YAML names all options and builds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import ssl_toolkit.configs
from ssl_toolkit.backbones import BackboneConfig, create_backbone
from ssl_toolkit.errors import UserError

FOLDER = Path(ssl_toolkit.configs.__file__).parent / "backbone"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_choices() -> None:
    assert set(NAMES) >= {
        "tiny_resnet",
        "resnet18",
        "resnet18_small",
        "resnet50",
        "convnext_tiny",
        "vit_small",
    }
    assert set(NAMES) >= {
        "vicregl_convnext_small",
        "vicregl_convnext_base",
        "vicregl_convnext_xlarge",
        "timm",
    }


@pytest.mark.parametrize("name", NAMES)
def test_config_lists_every_option_and_builds(name: str) -> None:
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    assert list(config) == [field.name for field in dataclasses.fields(BackboneConfig)]
    if name == "timm":
        with pytest.raises(UserError, match=r"backbone\.name is not set"):
            create_backbone(config)
        config.name = "regnety_002"
    with torch.device("meta"):
        backbone = create_backbone(config)
    assert backbone.num_features == backbone.stage_channels[-1]
