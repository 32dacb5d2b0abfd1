"""The networks that embed features for the loss and are thrown away after pretraining."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(nn.Sequential):
    """Linear, norm, ReLU for each width but the last, then a linear layer without bias.

    VICReg's expander and VICRegL's local projector (three layers) and SimCLR's projector (two layers).

    Args:
        in_features: width of the input.
        widths: of the layers, e.g. ``(8192, 8192, 8192)``.
        norm: ``batch`` (ResNets) or ``layer`` (ConvNeXts and ViTs), as in the published VICRegL code.
    """

    def __init__(self, in_features: int, widths: Sequence[int], norm: str) -> None:
        layers: list[nn.Module] = []
        for width in widths[:-1]:
            layers += [nn.Linear(in_features, width), NORMS[norm](width), nn.ReLU(inplace=True)]
            in_features = width
        layers.append(nn.Linear(in_features, widths[-1], bias=False))
        super().__init__(*layers)
        self.out_features = widths[-1]


def embed_cells(head: MLP, maps: Tensor) -> Tensor:
    """Apply a head to every cell of ``maps`` ``(B, C, H, W)``; the result is ``(B, H * W, D)`` in raster order.

    BatchNorm statistics are over all cells of all images.
    """
    batch, channels, height, width = maps.shape
    cells = maps.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    embedded: Tensor = head(cells)
    return embedded.view(batch, height * width, -1)
