"""What every backbone is: an image in, feature maps and a pooled vector out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """``maps`` is ``(B, C, H, W)``, ``pooled`` is ``(B, C)``: the mean of the maps, normalised where the
    architecture normalises after (or before) pooling."""

    maps: Tensor
    pooled: Tensor


@dataclass
class BackboneConfig:
    """Options of a backbone, enough to build the same architecture again.

    Attributes:
        name: a name of this package's own (``tiny_resnet``, ``vicregl_convnext_small``) or any timm model with
            feature maps.
        in_channels: channels of the input images.
        stem: ``imagenet`` keeps the architecture's stem; ``small`` replaces a ResNet's 7x7 stride-2 convolution
            and max-pooling by a 3x3 stride-1 convolution (as for CIFAR); ``small_padded`` is that with 2 pixels of
            padding in place of 1, as solo-learn has it.
        drop_path: stochastic depth rate, where the architecture has it.
        image_size: input side in pixels; needed by ViTs, whose position embeddings depend on it.
    """

    name: str = "resnet18"
    in_channels: int = 3
    stem: str = "imagenet"
    drop_path: float = 0.0
    image_size: int | None = None

    def as_dict(self) -> dict[str, str | int | float | None]:
        """The options as plain values, as they are stored beside weights."""
        return asdict(self)


class Backbone(nn.Module):
    """Base class of all backbones.

    Attributes:
        config: what `create_backbone` needs to build it again.
        num_features: channels of ``maps`` and of ``pooled``.
        stage_channels: channels of each map of the pyramid, from fine to coarse.
        norm: ``batch`` or ``layer``, the norm that heads on this backbone should use (BatchNorm for ResNets,
            LayerNorm for ConvNeXts and ViTs, as in the VICRegL paper's code).
        preprocess: pictures to input (`ssl_toolkit.data.preprocess.Preprocess`) where `ssl_toolkit.load_backbone` made
            it, else None.
    """

    config: BackboneConfig
    num_features: int
    stage_channels: tuple[int, ...]
    norm: str = "batch"
    preprocess: Callable[[Any], Tensor] | None = None

    if TYPE_CHECKING:  # nn.Module's gives Any

        def __call__(self, images: Tensor) -> Features: ...

    def forward(self, images: Tensor) -> Features:
        """Features of ``images`` ``(B, in_channels, S, S)``, already normalised."""
        raise NotImplementedError

    def stages(self, images: Tensor) -> list[Tensor]:
        """The pyramid of feature maps, from fine to coarse, each ``(B, C_i, H_i, W_i)``."""
        raise NotImplementedError

    def forward_stages(self, images: Tensor) -> tuple[Features, list[Tensor]]:
        """What `forward` and `stages` give. This package's backbones override it with a single pass."""
        return self(images), self.stages(images)
