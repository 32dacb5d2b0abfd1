"""Other ways to make the views of a recipe, as their users do: one image at a time, float32 and normalised."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFilter
import PIL.ImageOps
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from ssl_toolkit.views.spec import ViewGroup, ViewsConfig

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_RESAMPLING = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}

Transform = Callable[[Any], Any]


class PilDataset(Dataset[Any]):
    """Files opened by Pillow, each handed to ``transform``."""

    def __init__(self, files: Sequence[Path], transform: Transform) -> None:
        self.files, self.transform = list(files), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        with PIL.Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


class _PilBlur:
    """Gaussian blur as VICReg's published recipe has it: Pillow's filter, the deviation uniform in a range."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Any) -> Any:
        sigma = self.low + float(torch.rand(())) * (self.high - self.low)
        return image.filter(PIL.ImageFilter.GaussianBlur(sigma))


class _EachView:
    """One transform for each view of an image."""

    def __init__(self, transforms_of: Sequence[Transform]) -> None:
        self.transforms = list(transforms_of)

    def __call__(self, image: Any) -> list[Any]:
        return [transform(image) for transform in self.transforms]


def torchvision_pil(config: ViewsConfig) -> Transform:
    """The recipe with torchvision's classic transforms on Pillow images."""
    return _EachView([_pil_view(group, position) for group, position in config.positions()])


def _pil_view(group: ViewGroup, position: int) -> Transform:
    jitter = transforms.ColorJitter(group.brightness, group.contrast, group.saturation, group.hue)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                group.size, tuple(group.scale), tuple(group.ratio), _RESAMPLING[group.interpolation]
            ),
            transforms.RandomHorizontalFlip(group.flip),
            transforms.RandomApply([jitter], group.jitter),
            transforms.RandomGrayscale(group.gray),
            transforms.RandomApply([_PilBlur(*group.blur_sigma)], group.at(group.blur, position)),
            transforms.RandomApply([PIL.ImageOps.solarize], group.at(group.solarize, position)),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def torchvision_v2(config: ViewsConfig) -> Transform:
    """The recipe with torchvision's v2 transforms on uint8 tensors, a blur kernel of 23 pixels as SimCLR's."""
    return _EachView([_v2_view(group, position) for group, position in config.positions()])


def _v2_view(group: ViewGroup, position: int) -> Transform:
    low, high = group.blur_sigma
    jitter = v2.ColorJitter(group.brightness, group.contrast, group.saturation, group.hue)
    return v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(
                group.size, tuple(group.scale), tuple(group.ratio), _RESAMPLING[group.interpolation], antialias=True
            ),
            v2.RandomHorizontalFlip(group.flip),
            v2.RandomApply([jitter], group.jitter),
            v2.RandomGrayscale(group.gray),
            v2.RandomApply([v2.GaussianBlur(23, (low, high))], group.at(group.blur, position)),
            v2.RandomSolarize(128, group.at(group.solarize, position)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def lightly_missing() -> str:
    """Why lightly's transform cannot be timed here; empty where it can."""
    return "" if importlib.util.find_spec("lightly") else "not installed (pip install lightly)"


def lightly_vicregl(config: ViewsConfig) -> Transform:
    """lightly's VICRegLTransform at the recipe's sizes, scales and probabilities; it interpolates bilinearly."""
    large, *small = config.groups
    local = small[0] if small else large
    transform = importlib.import_module("lightly.transforms.vicregl_transform").VICRegLTransform
    return transform(
        global_crop_size=large.size,
        local_crop_size=local.size,
        n_global_views=large.count,
        n_local_views=local.count if small else 0,
        global_crop_scale=tuple(large.scale),
        local_crop_scale=tuple(local.scale),
        cj_prob=large.jitter,
        cj_strength=1.0,
        cj_bright=large.brightness,
        cj_contrast=large.contrast,
        cj_sat=large.saturation,
        cj_hue=large.hue,
        random_gray_scale=large.gray,
        global_gaussian_blur_prob=sum(large.at(large.blur, i) for i in range(large.count)) / large.count,
        global_solarize_prob=sum(large.at(large.solarize, i) for i in range(large.count)) / large.count,
        local_gaussian_blur_prob=sum(local.at(local.blur, i) for i in range(local.count)) / local.count,
        local_solarize_prob=sum(local.at(local.solarize, i) for i in range(local.count)) / local.count,
    )


def loader(files: Sequence[Path], transform: Transform, batch_size: int, workers: int) -> DataLoader[Any]:
    """The usual DataLoader over files, shuffled, workers kept."""
    return DataLoader(
        PilDataset(files, transform),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # what others warn of would be printed once for each worker


def make_files(folder: Path, count: int, height: int, width: int, quality: int) -> list[Path]:
    """JPEG files cut from scikit-learn's two photographs, each elsewhere and in other colours."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    generator = np.random.default_rng(0)
    files = []
    for number in range(count):
        photo = photos[number % len(photos)]
        scale = max(height / photo.shape[0], width / photo.shape[1], 1.0)
        size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
        large = np.asarray(PIL.Image.fromarray(photo).resize(size, PIL.Image.Resampling.BICUBIC))
        top, left = (int(generator.integers(a - b + 1)) for a, b in zip(large.shape[:2], (height, width)))
        cut = large[top : top + height, left : left + width, generator.permutation(3)]
        files.append(folder / f"{number:05d}.jpg")
        PIL.Image.fromarray(np.ascontiguousarray(cut)).save(files[-1], quality=quality)
    return files
