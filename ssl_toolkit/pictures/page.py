"""A page on which any cell of any image is clicked to see what is similar to it; it needs nothing beside it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from importlib import resources

import numpy as np
import PIL.Image
import torch
from jinja2 import Environment, StrictUndefined
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.pictures.draw import HEAT

LOST = 1e-4
"""Share of a cell's squared length that may be left out: what a cosine similarity can be off by is no more."""

SMALL = 160
"""Side in pixels below which images are stored without loss and drawn with their pixels visible."""


def compact(maps: Tensor) -> NDArray[np.int8]:
    """Cells as short vectors of small whole numbers whose cosine similarities are those of the cells, but for rounding
    (measured: 0.01 at most, 0.003 as a rule).

    The cells' principal directions (about the origin) take the place of the channels, as many as are needed to keep all
    but `LOST` of every cell; each vector is then scaled to fill int8.

    Args:
        maps: ``(n, C, H, W)``.

    Returns:
        ``(n * H * W, k)`` in raster order, one image after the other; a cell of zeros stays one.
    """
    cells = torch.nn.functional.normalize(maps.permute(0, 2, 3, 1).flatten(0, 2).double(), dim=1)
    _, directions = torch.linalg.eigh(cells.mT @ cells)
    turned = cells @ directions.flip(1)
    lost = (cells.square().sum(1, keepdim=True) - turned.square().cumsum(1)).amax(0)
    kept = min(int((lost > LOST).sum()) + 1, turned.shape[1])
    turned = turned[:, :kept]
    scale = 127 / turned.abs().amax(1, keepdim=True).clamp_min(1e-12)
    found: NDArray[np.int8] = (turned * scale).round().to(torch.int8).numpy()
    return found


def similarity_page(
    images: NDArray[np.uint8], maps: Tensor, cell: tuple[int, int], title: str, names: Sequence[str] | None = None
) -> str:
    """An HTML page: a click on a cell colours every cell of every image by its cosine similarity to it.

    Similarities are computed in the browser from `compact` vectors; without scripts the images are still there.

    Args:
        images: ``(n, S, S, 3)``.
        maps: ``(n, C, H, W)`` of them.
        cell: row and column, marked in the first image at first.
        names: one for each image; numbers by default.
    """
    count, (height, width) = len(images), maps.shape[2:]
    vectors = compact(maps)
    named = list(names) if names is not None else [f"image {i + 1}" for i in range(count)]
    table = np.round(colormaps[HEAT](np.arange(256))[:, :3] * 255).astype(np.uint8)
    data = {
        "images": count,
        "rows": height,
        "columns": width,
        "dimensions": vectors.shape[1],
        "cell": [0, *cell],
        "names": named,
        "vectors": _base64(vectors.tobytes()),
        "colours": _base64(table.tobytes()),
    }
    # A name may hold anything: < must not end the script.
    script = json.dumps(data).replace("<", "\\u003c")
    source = resources.files("ssl_toolkit.pictures").joinpath("similarity.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown = [{"name": name, "uri": _picture(image)} for name, image in zip(named, images)]
    return environment.from_string(source).render(
        title=title, images=shown, rows=height, columns=width, data=script, crisp=images.shape[1] < SMALL
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _picture(image: NDArray[np.uint8]) -> str:
    kind, options = ("png", {}) if len(image) < SMALL else ("jpeg", {"quality": 90})
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{_base64(buffer.getvalue())}"
