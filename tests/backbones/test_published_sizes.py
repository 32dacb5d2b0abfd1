"""Parameters and FLOPs of mmpretrain's VICRegL page for CUB-200 at 448 px, counted again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_toolkit.backbones import BackboneConfig, create_backbone

CLASSES, SIDE = 200, 448


def test_resnet50_on_cub_has_the_published_parameters_and_flops() -> None:
    """As mmcv counts: a multiplication and addition is one, BatchNorm two an element, ReLU and pooling one."""
    backbone = create_backbone(BackboneConfig(name="resnet50")).eval().to("meta")
    head = CLASSES * backbone.num_features
    parameters = sum(p.numel() for p in backbone.parameters()) + head + CLASSES
    assert round(parameters / 1e6, 2) == 23.92
    others = 0

    def count(module: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
        nonlocal others
        if isinstance(module, nn.BatchNorm2d):
            others += 2 * made.numel()
        else:
            others += (given[0] if isinstance(module, nn.MaxPool2d) else made).numel()

    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d):
            module.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        maps = backbone(torch.empty(1, 3, SIDE, SIDE, device="meta")).maps
    total = counter.get_total_flops() / 2 + others + maps.numel() + head
    assert round(total / 1e9, 2) == 16.48
