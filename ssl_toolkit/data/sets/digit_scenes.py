"""Digit scenes: the embedded data set, made in seconds from a seed, with labels, masks and boxes.

How a scene is drawn is in `ssl_toolkit.data.sets.scene_drawing`. The background is muted by default: with the
photos at full contrast (``bg_contrast=1 bg_gray=0``) the invariance task is solved from the background alone
and nothing is learned about the digits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ssl_toolkit.data.base import DataConfig, Objects
from ssl_toolkit.data.catalog import DATASETS
from ssl_toolkit.data.sets import scene_drawing
from ssl_toolkit.data.sets.in_memory import InMemory
from ssl_toolkit.data.sets.scene_drawing import Look, Scenes
from ssl_toolkit.errors import UserError
from ssl_toolkit.files import atomic_path, cache_dir
from ssl_toolkit.progress import progress_bar

FORMAT_VERSION = 1
"""Part of the cache file's name: raise it whenever the drawing or the arrays change."""


@dataclass
class DigitScenesConfig(DataConfig):
    """Options of the digit scenes.

    Attributes:
        size: side of a scene in pixels; digits scale with it.
        train_size, val_size, test_size: scenes in each split.
        seed: what the scenes are drawn from. Which digits and photo columns a split may use does not depend
            on it.
        bg_contrast: contrast of the background photo, 1 as it is.
        bg_gray: how far the background is pulled to gray, 0 in colour and 1 gray.
        noise: standard deviation of the pixel noise, of a range of 1.
    """

    mean: list[float] = field(default_factory=lambda: [0.457, 0.457, 0.457])
    std: list[float] = field(default_factory=lambda: [0.164, 0.164, 0.164])
    eval_resize: int = 64
    eval_size: int = 64
    size: int = 64
    train_size: int = 6144
    val_size: int = 1024
    test_size: int = 1024
    seed: int = 0
    bg_contrast: float = 0.1
    bg_gray: float = 1.0
    noise: float = 0.06

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mean) != 3:
            raise ValueError(f"mean has {len(self.mean)} channels, digit scenes have 3")
        if not 24 <= self.size <= 512:
            raise ValueError(f"size {self.size} must be between 24 and 512")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} must not be negative")
        for key in ("train_size", "val_size", "test_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} {getattr(self, key)} must be at least 1")
        for key in ("bg_contrast", "bg_gray", "noise"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} {getattr(self, key)} must be between 0 and 1")


@DATASETS.register("digit_scenes", DigitScenesConfig)
class DigitScenes(InMemory):
    """Photo texture with one to three handwritten digits on it; the largest one is the label.

    Attributes:
        images: ``(N, S, S, 3)`` uint8 RGB.
        masks: ``(N, S, S)`` uint8, 0 background, 1 + digit on a digit and its outline.
        label_array: ``(N,)`` int64, the dominant digit.
        boxes: ``(N, 3, 4)`` float32, XYXY in pixels (half open) of each whole digit with its outline, the
            dominant one first; up to 15% of a digit may lie under an earlier one. Zero past ``box_counts``.
        box_labels: ``(N, 3)`` int64, the digit in each box, -1 past ``box_counts``.
        box_counts: ``(N,)`` int64, digits in the scene, 1 to 3.
        digit_indices: ``(N, 3)`` int64, which of scikit-learn's digits was pasted, -1 past ``box_counts``.
        background_columns: ``(N, 2)`` int64, first and past-the-end photo column of the background.
    """

    classes = tuple("0123456789")
    mask_classes = ("background", *"0123456789")
    object_classes = tuple("0123456789")

    def __init__(self, config: DigitScenesConfig, split: str) -> None:
        self.name = "digit_scenes"
        self.config: DigitScenesConfig = config
        self.split = split
        scenes = _load_or_draw(config, split)
        self.images = scenes.images
        self.masks = scenes.masks
        self.label_array = scenes.label_array
        self.boxes = scenes.boxes
        self.box_labels = scenes.box_labels
        self.box_counts = scenes.box_counts
        self.digit_indices = scenes.digit_indices
        self.background_columns = scenes.background_columns

    def mask(self, index: int) -> NDArray[np.uint8]:
        return self.masks[index]

    def objects(self, index: int) -> Objects:
        """The digits in a scene, the dominant one first."""
        count = int(self.box_counts[index])
        boxes, labels = self.boxes[index, :count].copy(), self.box_labels[index, :count].copy()
        return Objects(boxes, labels, np.zeros(count, dtype=bool))

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.blake2b(self.images.data, digest_size=8)
        digest.update(self.masks.data)
        return digest.hexdigest()


def cache_path(config: DigitScenesConfig, split: str) -> Path:
    """Where the scenes of ``split`` are kept; the name changes with every option that they depend on."""
    matters = {
        "format": FORMAT_VERSION,
        "split": split,
        "count": _count(config, split),
        **{key: getattr(config, key) for key in ("size", "seed", "bg_contrast", "bg_gray", "noise")},
    }
    key = hashlib.blake2b(json.dumps(matters, sort_keys=True).encode(), digest_size=8).hexdigest()
    return cache_dir() / "digit_scenes" / f"{split}-v{FORMAT_VERSION}-{key}.npz"


def _count(config: DigitScenesConfig, split: str) -> int:
    return int(getattr(config, f"{split}_size"))


def _load_or_draw(config: DigitScenesConfig, split: str) -> Scenes:
    path = cache_path(config, split)
    notes = Console()
    try:
        return _read(path, (_count(config, split), config.size))
    except (FileNotFoundError, PermissionError):
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        notes.print(f"{path} is damaged ({error}); drawing it again", markup=False, soft_wrap=True)
    scenes = draw(config, split)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            np.savez(temporary, **vars(scenes))
    except (OSError, UserError) as error:  # a cache that cannot be written costs seconds, not the run
        notes.print(
            f"digit scenes are not kept ({error}); set SSL_TOOLKIT_CACHE to a folder that can be written",
            markup=False,
            soft_wrap=True,
        )
    return scenes


def _read(path: Path, expected: tuple[int, int]) -> Scenes:
    count, size = expected
    with np.load(path, allow_pickle=False) as stored:
        scenes = Scenes(**{f.name: stored[f.name] for f in dataclasses.fields(Scenes)})
    if scenes.images.shape != (count, size, size, 3) or scenes.masks.shape != (count, size, size):
        raise ValueError(f"images are {scenes.images.shape}")
    return scenes


def draw(config: DigitScenesConfig, split: str) -> Scenes:
    """The scenes of ``split``, drawn anew under a progress bar."""
    count = _count(config, split)
    look = Look(config.size, config.bg_contrast, config.bg_gray, config.noise)
    sources = scene_drawing.load_sources()
    parts = []
    with progress_bar(f"drawing digit scenes ({split})", count) as bar:
        for first in range(0, count, scene_drawing.CHUNK):
            here = min(scene_drawing.CHUNK, count - first)
            parts.append(
                scene_drawing.draw_chunk(sources, look, config.seed, split, first // scene_drawing.CHUNK, here)
            )
            bar.advance(here)
    joined = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Scenes)}
    return Scenes(**joined)
