"""Backbones to export, and networks of other libraries written from their documentation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_toolkit.backbones import Backbone, BackboneConfig, create_backbone
from ssl_toolkit.data.preprocess import Preprocess
from ssl_toolkit.zoo.exporters import Facts, Subject

Weights = Mapping[str, Tensor]


def fresh(config: BackboneConfig | str, seed: int = 0) -> Backbone:
    """A backbone whose every weight and statistic is drawn, so that none can be left out unseen."""
    torch.manual_seed(seed)
    backbone = create_backbone(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in backbone.state_dict().items():
            if value.ndim == 1 and value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.copy_(noise * 0.5 + 0.75 if name.endswith(("weight", "var", "gamma")) else noise * 0.2)
    return backbone.eval()


def subject(config: BackboneConfig | str, size: int = 64, facts: Facts | None = None) -> Subject:
    """A fresh backbone with its preprocessing."""
    backbone = fresh(config)
    channels = backbone.config.in_channels
    prepared = Preprocess((0.4,) * channels, (0.25,) * channels, size + 8, size)
    return Subject(backbone, prepared, "mine", {"step": "7"}, facts or Facts())


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.detach().abs().max()))


def _norm(x: Tensor, w: Weights, name: str) -> Tensor:
    means, variances = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, means, variances, w[f"{name}.weight"], w[f"{name}.bias"])


def detectron2_resnet(w: Weights, images: Tensor) -> Tensor:
    """res5 of detectron2's ResNet (``STRIDE_IN_1X1: False``), by the names of its documentation; none is left over."""
    left = set(w)

    def conv(x: Tensor, name: str, stride: int) -> Tensor:
        weight = w[f"{name}.weight"]
        left.difference_update({key for key in left if key.startswith((f"{name}.weight", f"{name}.norm."))})
        return _norm(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2), w, f"{name}.norm")

    x = F.max_pool2d(F.relu(conv(images, "stem.conv1", 2)), 3, 2, 1)
    for stage in range(2, 6):
        blocks = {int(key.split(".")[1]) for key in w if key.startswith(f"res{stage}.")}
        for block in sorted(blocks):
            name = f"res{stage}.{block}"
            stride = 2 if stage > 2 and block == 0 else 1
            convs = sorted({key.split(".")[2] for key in w if key.startswith(f"{name}.conv")})
            strided = "conv2" if len(convs) == 3 else "conv1"  # a bottleneck strides in its 3x3
            y = x
            for each in convs:
                y = conv(y, f"{name}.{each}", stride if each == strided else 1)
                y = F.relu(y) if each != convs[-1] else y
            shortcut = conv(x, f"{name}.shortcut", stride) if f"{name}.shortcut.weight" in w else x
            x = F.relu(y + shortcut)
    assert not left
    return x


def mmpretrain_convnext(w: Weights, images: Tensor, patch: int = 4) -> Tensor:
    """norm3 of the last stage of mmpretrain's ConvNeXt, by the names of its documentation; none is left over."""
    left = set(w)

    def take(name: str) -> Tensor:
        left.discard(name)
        return w[name]

    def norm(x: Tensor, name: str) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], take(f"{name}.weight"), take(f"{name}.bias"), 1e-6)
        return y.permute(0, 3, 1, 2)

    def conv(x: Tensor, name: str, stride: int) -> Tensor:
        return F.conv2d(x, take(f"{name}.weight"), take(f"{name}.bias"), stride=stride)

    x = norm(conv(images, "downsample_layers.0.0", patch), "downsample_layers.0.1")
    for stage in range(4):
        if stage:
            x = conv(norm(x, f"downsample_layers.{stage}.0"), f"downsample_layers.{stage}.1", 2)
        for block in sorted({int(key.split(".")[2]) for key in w if key.startswith(f"stages.{stage}.")}):
            name = f"stages.{stage}.{block}"
            depthwise = take(f"{name}.depthwise_conv.weight"), take(f"{name}.depthwise_conv.bias")
            y = norm(F.conv2d(x, *depthwise, padding=3, groups=x.shape[1]), f"{name}.norm").permute(0, 2, 3, 1)
            y = F.linear(y, take(f"{name}.pointwise_conv1.weight"), take(f"{name}.pointwise_conv1.bias"))
            y = F.linear(F.gelu(y), take(f"{name}.pointwise_conv2.weight"), take(f"{name}.pointwise_conv2.bias"))
            y = y * take(f"{name}.gamma") if f"{name}.gamma" in w else y
            x = x + y.permute(0, 3, 1, 2)
    x = norm(x, "norm3")
    assert not left
    return x


class Halves(nn.Module):
    """Something that a backbone is not: half of its features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return features.maps, features.pooled / 2
