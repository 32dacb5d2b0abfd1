"""The DALI graph of one batch: decode once, then crop, resize, flip and recolour each view.

One graph for the CPU and, with mixed decoding, for a GPU. It draws nothing itself: every choice comes with the batch,
so its boxes and flips are those of the ``torch`` engine. Imports DALI; only `ssl_toolkit.views.dali_engine` imports it.

Operators of DALI are not used where they mean something else than those of PIL: its contrast pivots on 128, not on the
mean of the image, its hue turns YIQ and not HSV, its colour operator has one fixed order, and there is none to
solarize. Those are arithmetic here, made bytes after each step as PIL does. What still differs is in the parity table
of docs/views.md, which a test holds.
"""

# DALI rewrites the source of what it traces: a condition on numbers of the batch is an "if" of its own, which splits
# the batch, and its nodes have no static types.
# mypy: ignore-errors
# ruff: noqa: SIM102

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali import math as dmath

from ssl_toolkit.views import photometric as ops
from ssl_toolkit.views.settings import BRIGHTNESS, CONTRAST, HUE, SATURATION, Settings
from ssl_toolkit.views.spec import ViewGroup, ViewsConfig

BLENDS = 3
"""Brightness, contrast and saturation: at most so many before the hue, and after it."""

# Places in the numbers of a view, see `flatten`; the first four are the crop.
_FLIP, _GRAY, _SOLARIZE, _SIGMA, _SIDE, _HUE, _BEFORE = range(4, 11)
_AFTER = _BEFORE + 2 * BLENDS
NUMBERS = _AFTER + 2 * BLENDS
_NOTHING = -1.0
_HALF = 0.4999 / 255
"""Of a level: subtracted where DALI rounds, so that values are cut off as PIL does."""

_INTERPOLATION = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}


def flatten(settings: Settings) -> list[float]:
    """``settings`` as the `NUMBERS` numbers that the graph reads.

    A blend is two numbers: which (`BRIGHTNESS`, `CONTRAST`, `SATURATION`, or -1 for none) and its factor.
    """
    left, top, right, bottom = settings.box()
    side = ops.blur_side(settings.sigma) if settings.sigma else 1
    numbers = [top, left, bottom, right, settings.flip, settings.gray, settings.solarize, settings.sigma, side, 0.0]
    numbers += [_NOTHING, 1.0] * (2 * BLENDS)
    place = _BEFORE
    for operation, value in settings.jitter:
        if operation == HUE:
            numbers[_HUE] = ops.hue_steps(value)
            place = _AFTER
        else:
            numbers[place : place + 2] = operation, value
            place += 2
    return numbers


def _rounded(image: Any) -> Any:
    return fn.cast(dmath.clamp(image, 0.0, 255.0), dtype=types.UINT8)


def _luma(image: Any, channels: int) -> Any:
    """``(H, W, 1)`` uint8 of RGB; other images as they are, since only the mean is asked of them."""
    return fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY) if channels == 3 else image


def _contrast(image: Any, factor: Any, channels: int) -> Any:
    mean = dmath.floor(fn.reductions.mean(_luma(image, channels)) + 0.5)
    return _rounded(dmath.floor(image * factor + mean * (1.0 - factor)))


def _blends(image: Any, numbers: Any, place: int, on: Any, channels: int) -> Any:
    for slot in range(BLENDS):
        at = place + 2 * slot
        if numbers[at] == BRIGHTNESS:
            image = fn.brightness(image, brightness=numbers[at + 1], brightness_shift=-_HALF)
        elif numbers[at] == CONTRAST:
            image = _contrast(image, on[at + 1], channels)
        if channels == 3:
            if numbers[at] == SATURATION:
                image = fn.saturation(image, saturation=numbers[at + 1])
    return image


def _hue(image: Any, steps: Any) -> Any:
    """HSV hue turned by ``steps`` of 256: a channel is ``V - C clip(min(k, 4 - k), 0, 1)``, ``k`` from the hue."""
    r, g, b = image[:, :, 0:1], image[:, :, 1:2], image[:, :, 2:3]
    value = dmath.max(dmath.max(r, g), b)
    chroma = fn.cast(value - dmath.min(dmath.min(r, g), b), dtype=types.FLOAT)
    red, green = r == value, g == value
    r, g, b = (fn.cast(c, dtype=types.FLOAT) for c in (r, g, b))
    sector = red * (g - b) + (1 - red) * (green * (b - r) + (1 - green) * (r - g))
    hue = sector / dmath.max(chroma, 1.0) + (1 - red) * (4.0 - 2.0 * green) + steps * (6 / 256)
    turned = hue + types.Constant(np.array([5, 3, 1], np.float32).reshape(1, 1, 3), device=image.device)
    turned = turned - 6.0 * dmath.floor(turned / 6.0)
    share = dmath.clamp(dmath.min(turned, 4.0 - turned), 0.0, 1.0)
    return _rounded(value - chroma * share + 0.0)


def _blur(image: Any, numbers: Any) -> Any:
    side = fn.cast(numbers[_SIDE], dtype=types.INT32)
    return fn.gaussian_blur(image, sigma=numbers[_SIGMA], window_size=side)


def _view(image: Any, numbers: Any, group: ViewGroup, channels: int) -> Any:
    """One view ``(S, S, C)`` uint8.

    ``numbers`` are on the CPU, where arguments and conditions must be; ``on`` are the same beside the pixels.
    """
    on = numbers.gpu() if image.device == "gpu" else numbers
    # At the edge PIL's filter is cut off, this one reaches over it: the one difference of more than a few levels.
    view = fn.resize(
        image,
        size=[group.size, group.size],
        roi_start=numbers[0:2],
        roi_end=numbers[2:4],
        interp_type=_INTERPOLATION[group.interpolation],
        antialias=True,
    )
    view = fn.flip(view, horizontal=fn.cast(numbers[_FLIP], dtype=types.INT32))
    if group.jitter > 0:
        view = _blends(view, numbers, _BEFORE, on, channels)
        if channels == 3 and group.hue > 0:
            if numbers[_HUE] > 0.0:
                view = _hue(view, on[_HUE])
        view = _blends(view, numbers, _AFTER, on, channels)
    if channels == 3 and group.gray > 0:
        if numbers[_GRAY] > 0.0:
            view = fn.cat(*(_luma(view, 3) for _ in range(3)), axis=2)
    if max(group.blur) > 0:
        if numbers[_SIGMA] > 0.0:
            view = _blur(view, numbers)
    if max(group.solarize) > 0:
        if numbers[_SOLARIZE] > 0.0:
            view = _rounded(dmath.abs(255.0 * (view >= 128) - view))
    return view


def _decoded(encoded: Any, file: Any, device: str) -> Any:
    # Turned here, as the boxes were drawn: DALI reads orientations otherwise, and of two in a file it takes one for the
    # size and another for the pixels, which overruns its buffer (2.4).
    where = "mixed" if device == "gpu" else "cpu"
    image = fn.decoders.image(encoded, device=where, output_type=types.RGB, adjust_orientation=False)
    if file[1] > 0:
        image = fn.transpose(image, perm=[1, 0, 2], output_layout="HWC")
    if file[2] + file[3] > 0:
        image = fn.flip(image, vertical=file[2], horizontal=file[3])
    return image


@pipeline_def(enable_conditionals=True, exec_dynamic=True)
def view_pipeline(source: Any, config: ViewsConfig, channels: int, device: str) -> Any:
    """Views ``(B, S, S, C)`` uint8, one output each.

    Args:
        source: called for each batch, gives lists of: pixels, numbers (see `flatten`) for each view and, with 3
            channels, the bytes of JPEG files and four numbers: whether a sample comes as a file, and, once decoded,
            whether rows and columns change places and whether it is mirrored up-down and left-right to stand upright.
            What a sample does not come as may be a dummy.
        config: the recipe.
        channels: of every image.
        device: ``cpu`` or ``gpu``.
    """
    positions = config.positions()
    given = [(types.UINT8, 3, "HWC"), *((types.FLOAT, 1, "") for _ in positions)]
    if channels == 3:
        given += [(types.UINT8, 1, ""), (types.INT32, 1, "")]
    kinds, ndims, layouts = (list(values) for values in zip(*given))
    data = fn.external_source(source, num_outputs=len(given), dtype=kinds, ndim=ndims, layout=layouts)
    image, numbers = data[0].gpu() if device == "gpu" else data[0], data[1 : 1 + len(positions)]
    if channels == 3:
        encoded, file = data[-2], data[-1]
        if file[0] > 0:
            image = _decoded(encoded, file, device)
    return tuple(_view(image, drawn, group, channels) for drawn, (group, _) in zip(numbers, positions))
