"""Images with coloured squares: each is one cell of a map of stride 4, its colour the class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.base import DataConfig, ImageDataset, Objects
from ssl_toolkit.evaluation import EvalData, Preparation, Source
from tests.evaluation.fakes import COLOURS, CPU, ColourBackbone

PREPARATION = Preparation([0.0] * 3, [1.0] * 3, 32, 32, batch_size=8)


class ObjectDataset(ImageDataset):
    """Images with boxes from arrays."""

    def __init__(
        self,
        images: Sequence[NDArray[np.uint8]],
        objects: Sequence[Objects],
        split: str = "train",
        name: str = "squares",
        classes: int = 3,
    ) -> None:
        self.images, self.things = images, objects
        self.name, self.split, self.in_channels = name, split, 3
        self.config = DataConfig([0.0] * 3, [1.0] * 3, 32, 32)
        self.object_classes = tuple(f"class{i}" for i in range(classes))

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]

    def objects(self, index: int) -> Objects:
        return self.things[index]

    def fingerprint(self) -> str:
        return f"{self.split}-{sum(int(image.sum()) for image in self.images)}"


def objects(boxes: object, labels: Sequence[int], ignore: Sequence[bool] | None = None) -> Objects:
    """`Objects` from lists."""
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.zeros(len(labels), bool) if ignore is None else np.array(ignore),
    )


def squares(count: int, split: str = "train", seed: int = 0, cell: int = 4, side: int = 32) -> ObjectDataset:
    """Black images of ``side`` pixels with 0 to 3 coloured squares of one cell."""
    rng = np.random.default_rng([seed, ord(split[0]), len(split)])
    images, things = [], []
    grid = side // cell
    for number in range(count):
        image = np.zeros((side, side, 3), np.uint8)
        places = rng.choice(grid * grid, 0 if number == 1 else int(rng.integers(1, 4)), replace=False)
        labels = rng.integers(0, 3, len(places))
        boxes = []
        for place, label in zip(places, labels):
            y, x = cell * (place // grid), cell * (place % grid)
            image[y : y + cell, x : x + cell] = COLOURS[label]
            boxes.append([x, y, x + cell, y + cell])
        images.append(image)
        things.append(objects(boxes, labels.tolist()))
    return ObjectDataset(images, things, split)


def all_splits(count: int = 32, **options: int) -> dict[str, ObjectDataset]:
    return {split: squares(count, split, **options) for split in ("train", "val", "test")}


class WideColourBackbone(ColourBackbone):
    """Colours as maps of stride 4, with stages of two strides."""

    def __init__(self) -> None:
        super().__init__()
        self.stage_channels = (3, 3)

    def stages(self, images: Tensor) -> list[Tensor]:
        maps = self(images).maps
        return [maps, torch.nn.functional.avg_pool2d(maps, 2)]


def detection_data(datasets: dict[str, ObjectDataset], backbone: object | None = None, **options: object) -> EvalData:
    """`EvalData` without features, as live protocols see it."""
    source = Source(backbone or WideColourBackbone(), {}, "made up")  # type: ignore[arg-type]
    return EvalData(source, datasets, {}, PREPARATION, CPU, torch.float32, identity="x", **options)  # type: ignore[arg-type]
