"""What the tests of the importers share: networks with numbers in all their weights, and how they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_toolkit.backbones import Backbone, create_backbone
from ssl_toolkit.zoo.importers import Imported, load_checkpoint
from ssl_toolkit.zoo.importers.convert import convert
from ssl_toolkit.zoo.importers.formats import Parts
from ssl_toolkit.zoo.importers.layouts import OFFICIAL_CONVNEXT_LAYOUT, RESNET_LAYOUT


def alive(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in evaluation mode, no weight or statistic at an initial 0 or 1, in which a mix-up would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(noise.abs() * 0.2 + 0.8)
            elif value.is_floating_point() and value.ndim == 1:
                value.add_(0.1 * noise)
            elif name.endswith(("gamma", "layer_scale")):
                value.fill_(0.5)
    return model.eval()


def images(size: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def save(tree: Any, folder: Path, name: str = "weights.pth") -> Path:
    path = folder / name
    torch.save(tree, path)
    return path


def imported(tree: Any, folder: Path, **options: Any) -> Imported:
    return load_checkpoint(save(tree, folder), **options)


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def lightning(weights: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    """As a Lightning checkpoint lies on disk."""
    return {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": weights,
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "hyper_parameters": {"lr": 0.1, "path": Path("data")},
        **more,
    }


def assert_same(backbone: Backbone, pooled: Tensor, maps: Tensor | None = None, size: int = 64) -> None:
    """The backbone gives these features of `images`."""
    with torch.no_grad():
        features = backbone(images(size, backbone.config.in_channels))
    scale = pooled.abs().max().item()
    assert scale > 1e-3
    torch.testing.assert_close(features.pooled, pooled, rtol=1e-5, atol=1e-5 * scale)
    if maps is not None:
        torch.testing.assert_close(features.maps, maps, rtol=1e-5, atol=1e-5 * maps.abs().max().item())


def without_head(model: nn.Module, name: str = "fc") -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith(f"{name}.")}


def resnet_features(model: Any, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pooled features and maps of a torchvision ResNet, by its own forward pass."""
    found = []
    hook = model.layer4.register_forward_hook(lambda module, inputs, output: found.append(output))
    fc, model.fc = model.fc, nn.Identity()
    with torch.no_grad():
        pooled = model(images() if x is None else x)
    hook.remove()
    model.fc = fc
    return pooled, found[0]


def vit_features(model: Any, size: int = 64) -> tuple[Tensor, Tensor]:
    """The mean of the patch tokens, and they as maps, of a timm ViT with one class token."""
    with torch.no_grad():
        tokens = model.forward_features(images(size))[:, model.num_prefix_tokens :]
    side = round(tokens.shape[1] ** 0.5)
    return tokens.mean(1), tokens.mT.unflatten(2, (side, side))


OFFICIAL_ARCHITECTURES = {
    "resnet50": "resnet50",
    "resnet50x2": "resnet50x2",
    "resnet200x2": "resnet200x2",
    "convnext_small": "vicregl_convnext_small",
    "convnext_base": "vicregl_convnext_base",
    "convnext_xlarge": "vicregl_convnext_xlarge",
}
"""The authors' names to the names of our backbones."""


def convert_official(state_dict: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """The official backbone ``state_dict`` under the names of our backbone, by the importer's own conversion."""
    with torch.device("meta"):
        empty = create_backbone(OFFICIAL_ARCHITECTURES[arch])
    layout = OFFICIAL_CONVNEXT_LAYOUT if arch.startswith("convnext") else RESNET_LAYOUT
    parts = Parts("vicregl", "", layout, dict(state_dict), {}, {})
    return convert(parts, empty, f"the official {arch}")[0]


def load_official(path: Path, arch: str) -> Backbone:
    """The backbone of an official checkpoint file, bare or whole."""
    return load_checkpoint(path, format="vicregl", arch=OFFICIAL_ARCHITECTURES[arch]).backbone
