"""One image, or several, as a backbone is to see them: the geometry and numbers of the evaluation, as a callable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from ssl_toolkit.data.base import Image
from ssl_toolkit.data.transforms import Normalize, eval_batch
from ssl_toolkit.errors import UserError


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side (bilinear, antialiased), cut the centre, scale to [0, 1], normalise.

    It can be pickled, and stand in a torchvision ``Compose`` or as the ``transform`` of a data set.

    Attributes:
        mean, std: per channel, in [0, 1] units.
        resize: the shorter side in pixels before the cut.
        size: side in pixels of the centre cut.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int
    size: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize:
            raise UserError(f"size={self.size} must be between 1 and resize={self.resize} pixels")
        if len(self.mean) != len(self.std) or not self.mean:
            raise UserError(f"mean has {len(self.mean)} channels, std has {len(self.std)}: give one number per channel")

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Preprocess:
        """From what is kept beside weights: ``mean``, ``std``, ``eval_resize``, ``eval_size``."""
        mean, std = (tuple(float(x) for x in stored[key]) for key in ("mean", "std"))
        return cls(mean, std, int(stored["eval_resize"]), int(stored["eval_size"]))

    def stored(self) -> dict[str, Any]:
        """What is kept beside weights."""
        return {"mean": list(self.mean), "std": list(self.std), "eval_resize": self.resize, "eval_size": self.size}

    def __call__(self, images: Any) -> Tensor:
        """One image to ``(C, size, size)`` float32, or a list of them to ``(N, C, size, size)``.

        Args:
            images: a PIL image (turned upright by its EXIF orientation), an array ``(H, W, C)`` or ``(H, W)`` uint8, a
                tensor ``(C, H, W)`` uint8, or a list of these, which may differ in size.

        Raises:
            UserError: something else, or another number of channels than the backbone has.
        """
        several = isinstance(images, Sequence)
        pixels = [self._pixels(image) for image in (images if several else [images])]
        if not pixels:
            raise UserError("there is no image to preprocess: the list is empty")
        batch: Tensor = Normalize(self.mean, self.std)(eval_batch(pixels, self.resize, self.size))
        return batch if several else batch[0]

    def _pixels(self, image: Any) -> Image:
        channels = len(self.mean)
        if isinstance(image, PIL.Image.Image):
            upright = PIL.ImageOps.exif_transpose(image)
            if channels in (1, 3):
                upright = upright.convert("RGB" if channels == 3 else "L")
            image = np.array(upright)
        elif isinstance(image, Tensor):
            image = image.cpu().permute(1, 2, 0).numpy() if image.ndim == 3 else image.cpu().numpy()
        if not isinstance(image, np.ndarray):
            raise UserError(f"cannot preprocess {type(image).__name__}: give PIL images, uint8 arrays or uint8 tensors")
        pixels = image[:, :, None] if image.ndim == 2 else image
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            raise UserError(
                f"cannot preprocess {pixels.dtype} of shape {tuple(pixels.shape)}: give uint8 pixels, arrays (H, W, C) "
                "or tensors (C, H, W)"
            )
        if pixels.shape[2] != channels:
            raise UserError(f"an image has {pixels.shape[2]} channels, the backbone takes {channels}: convert it")
        return np.ascontiguousarray(pixels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """A batch ``(B, C, H, W)`` of values 0 to 255, cut already, to network input on its own device."""
        normal: Tensor = Normalize(self.mean, self.std).to(pixels.device)(pixels)
        return normal.contiguous(memory_format=torch.channels_last)
