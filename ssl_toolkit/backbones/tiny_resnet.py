"""A ResNet small enough to train on a laptop: for the embedded digit scenes, tests and the demo."""

from __future__ import annotations

from timm.layers.drop import DropPath
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from ssl_toolkit.backbones.base import Backbone, BackboneConfig, Features
from ssl_toolkit.errors import UserError

WIDTHS = (32, 64, 128, 128)
STRIDES = (1, 2, 2, 1)


def _stage(inside: int, outside: int, stride: int, drop_path: float) -> BasicBlock:
    shortcut = None
    if stride != 1 or inside != outside:
        shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside))
    return BasicBlock(
        inside,
        outside,
        stride=stride,
        downsample=shortcut,
        drop_path=DropPath(drop_path) if drop_path > 0 else None,
    )


class TinyResNet(Backbone):
    """Four basic blocks of widths 32, 64, 128, 128 behind a 3x3 stride-2 stem without max-pooling.

    The total stride is 8, so a 48-pixel view has 6x6 cells. About 0.7 million weights. Blocks as in He et
    al., "Deep Residual Learning for Image Recognition" (2016), figure 5 left.

    Args:
        config: ``in_channels`` and ``drop_path`` apply; ``image_size`` has no effect.

    Raises:
        UserError: ``stem`` is ``small``: the stem is a small one already.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.stem != "imagenet":
            raise UserError(
                f"backbone.stem={config.stem} is for timm ResNets; leave it out, {config.name} has a 3x3 stem"
            )
        self.config = config
        self.num_features = WIDTHS[-1]
        self.stage_channels = WIDTHS
        self.norm = "batch"
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, WIDTHS[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
        )
        inputs = (WIDTHS[0], *WIDTHS[:-1])
        rates = [config.drop_path * i / (len(WIDTHS) - 1) for i in range(len(WIDTHS))]
        self.blocks = nn.ModuleList(map(_stage, inputs, WIDTHS, STRIDES, rates))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, images: Tensor) -> list[Tensor]:
        """The outputs of the four blocks, at strides 2, 4, 8 and 8."""
        x = self.stem(images)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Features:
        """``maps`` ``(B, 128, ceil(H / 8), ceil(W / 8))`` and their mean."""
        return self.forward_stages(images)[0]

    def forward_stages(self, images: Tensor) -> tuple[Features, list[Tensor]]:
        """Both from one pass."""
        stages = self.stages(images)
        return Features(stages[-1], stages[-1].mean((2, 3))), stages
