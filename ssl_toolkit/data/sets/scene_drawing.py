"""How a digit scene is drawn: handwritten digits as outlined stickers on muted photo texture.

Sources are scikit-learn's `load_digits` (1,797 handwritten digits of 8x8, UCI, CC BY 4.0) and
`load_sample_images` (china.jpg by danielbuechele and flower.jpg by vultilion, CC BY 2.0). What belongs to one
split is never used in another: digits are dealt by their rank within the class, photos are cut into columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

CHUNK = 250
"""Scenes drawn from one random stream; a shorter data set is the beginning of a longer one."""

MAX_OBJECTS = 3
PHOTO_COLUMNS = {"train": (0, 320), "val": (320, 480), "test": (480, 640)}
DIGIT_RANKS = {"train": range(7), "val": range(7, 8), "test": range(8, 10)}

_OBJECT_COUNT = (0.35, 0.40, 0.25)
_PHOTO_SIDE = (64, 160)
_LARGE = (36, 52)  # pixels in a scene of 64; scaled with the scene
_SMALL = (22, 32)
_TRIES = 24
_MAX_HIDDEN = 0.15
_OUTLINE = 0.10
_GRAY_LEVEL = 0.45


@dataclass(frozen=True)
class Sources:
    """What scenes are made of.

    Attributes:
        digits: ``(M, 8, 8)`` float32 in [0, 1], ink 1.
        labels: ``(M,)`` int64, 0 to 9.
        photos: ``(P, H, W, 3)`` uint8 RGB.
    """

    digits: Floats
    labels: Ints
    photos: NDArray[np.uint8]


def load_sources() -> Sources:
    """The digits and photos that come with scikit-learn."""
    from sklearn.datasets import load_digits, load_sample_images  # a second to import: only when drawing

    digits = load_digits()
    photos = np.stack(load_sample_images().images)
    return Sources((digits.images / 16).astype(np.float32), digits.target.astype(np.int64), photos)


def digits_of(labels: Ints, split: str) -> Ints:
    """Positions of the digits that ``split`` may use: 70% train, 10% val, 20% test of every class.

    Independent of the seed, so that a backbone trained on one seed never saw the test digits of another.
    """
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.flatnonzero(np.isin(rank % 10, DIGIT_RANKS[split]))


@dataclass(frozen=True)
class Look:
    """The options that a scene's pixels depend on; see `DigitScenesConfig`."""

    size: int
    bg_contrast: float
    bg_gray: float
    noise: float


@dataclass(frozen=True)
class Scenes:
    """Drawn scenes; `DigitScenes` says what each array holds."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    label_array: Ints
    boxes: Floats
    box_labels: Ints
    box_counts: Ints
    digit_indices: Ints
    background_columns: Ints


@dataclass(frozen=True)
class _Plan:
    """Every random choice of a chunk of scenes, drawn before the first pixel."""

    photo: Ints
    side: Ints
    left: Ints
    top: Ints
    flip: NDArray[np.bool_]
    channels: Ints  # (n, 3), a permutation
    gain: Floats
    count: Ints
    digit: Ints  # (n, MAX_OBJECTS), position in Sources.digits; the first is the dominant one
    side_of: Ints  # (n, MAX_OBJECTS), pixels
    ink: Floats  # (n, MAX_OBJECTS, 3)
    outline: Floats
    place: Floats  # (n, MAX_OBJECTS, _TRIES, 2), where to try, in [0, 1)


def _plan(rng: np.random.Generator, sources: Sources, split: str, size: int) -> _Plan:
    n, shape = CHUNK, (CHUNK, MAX_OBJECTS)
    first, last = PHOTO_COLUMNS[split]
    side = rng.integers(_PHOTO_SIDE[0], _PHOTO_SIDE[1], n, endpoint=True)
    allowed = digits_of(sources.labels, split)
    digit = rng.choice(allowed, shape)
    # each ten scenes in a row show each digit once: classes are balanced however few scenes are asked for
    wanted = rng.permuted(np.tile(np.arange(10), (n // 10, 1)), axis=1).ravel()
    by_class = [allowed[sources.labels[allowed] == label] for label in range(10)]
    digit[:, 0] = [rng.choice(by_class[label]) for label in wanted]
    unit = size / 64
    side_of = rng.integers(round(_SMALL[0] * unit), round(_SMALL[1] * unit), shape, endpoint=True)
    side_of[:, 0] = rng.integers(round(_LARGE[0] * unit), round(_LARGE[1] * unit), n, endpoint=True)
    dark_ink = rng.random((*shape, 1)) < 0.5
    return _Plan(
        photo=rng.integers(0, len(sources.photos), n),
        side=side,
        left=first + (rng.random(n) * (last - first - side + 1)).astype(np.int64),
        top=(rng.random(n) * (sources.photos.shape[1] - side + 1)).astype(np.int64),
        flip=rng.random(n) < 0.5,
        channels=rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1),
        gain=rng.uniform(0.7, 1.3, n).astype(np.float32),
        count=1 + rng.choice(MAX_OBJECTS, n, p=_OBJECT_COUNT),
        digit=digit,
        side_of=side_of,
        ink=_pulled(rng.random((*shape, 3), np.float32), dark_ink),
        outline=_pulled(rng.random((*shape, 3), np.float32), ~dark_ink),
        place=rng.random((*shape, _TRIES, 2), np.float32),
    )


def _pulled(colour: Floats, dark: NDArray[np.bool_]) -> Floats:
    """Colours half-way to black where ``dark``, half-way to white elsewhere."""
    return colour * np.float32(0.5) + np.where(dark, np.float32(0), np.float32(0.5))


def _backgrounds(plan: _Plan, photos: NDArray[np.uint8], look: Look, count: int) -> Floats:
    """``(count, S, S, 3)`` float32: photo crops, recoloured, then grayed and flattened as ``look`` says."""
    out = np.empty((count, look.size, look.size, 3), dtype=np.float32)
    for i in range(count):
        x, y, side = int(plan.left[i]), int(plan.top[i]), int(plan.side[i])
        crop = photos[plan.photo[i], y : y + side, x : x + side]
        how = cv2.INTER_AREA if side > look.size else cv2.INTER_LINEAR
        resized = cv2.resize(crop, (look.size, look.size), interpolation=how)
        out[i] = (resized[:, ::-1] if plan.flip[i] else resized)[:, :, plan.channels[i]]
    out *= plan.gain[:count, None, None, None] / np.float32(255)
    np.clip(out, 0, 1, out=out)
    gray = out.mean(axis=3, keepdims=True)
    out += np.float32(look.bg_gray) * (gray - out)
    return _GRAY_LEVEL + np.float32(look.bg_contrast) * (out - _GRAY_LEVEL)


@dataclass(frozen=True)
class _Sticker:
    """One digit at its final size ``d``.

    Attributes:
        stroke, cover: opacity ``(d, d)`` of the stroke, and of the stroke with its outline.
        solid: ``(d, d)``, the pixels that the mask gives to the digit.
        area: how many those are.
    """

    stroke: Floats
    cover: Floats
    solid: NDArray[np.bool_]
    area: int

    @classmethod
    def of(cls, digit: Floats, side: int) -> _Sticker:
        radius = max(1, round(_OUTLINE * side))
        inner = side - 2 * radius
        grown = cv2.resize(digit, (inner, inner), interpolation=cv2.INTER_CUBIC)
        stroke = np.zeros((side, side), dtype=np.float32)
        stroke[radius:-radius, radius:-radius] = np.clip((grown - 0.3) / 0.3, 0, 1)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        cover: Floats = np.asarray(cv2.dilate(stroke, disc), dtype=np.float32)
        solid = cover >= 0.5
        return cls(stroke, cover, solid, int(np.count_nonzero(solid)))

    def box(self) -> tuple[int, int, int, int]:
        """``x0, y0, x1, y1`` of the solid pixels, half open."""
        columns, rows = np.flatnonzero(self.solid.any(axis=0)), np.flatnonzero(self.solid.any(axis=1))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _place(plan: _Plan, i: int, digits: Floats, size: int) -> list[tuple[int, _Sticker, int, int]]:
    """``(object, sticker, x, y)`` of scene ``i``, the dominant one first.

    A later sticker lies under the earlier ones, and at most 15% of it is hidden; one that finds no such place
    in its tries is left out.
    """
    taken = np.zeros((size, size), dtype=bool)
    placed = []
    for k in range(int(plan.count[i])):
        side = int(plan.side_of[i, k])
        sticker = _Sticker.of(digits[plan.digit[i, k]], side)
        for x, y in (plan.place[i, k] * (size - side + 1)).astype(np.int64).tolist():
            under = taken[y : y + side, x : x + side]
            if np.count_nonzero(under & sticker.solid) < _MAX_HIDDEN * sticker.area:
                under |= sticker.solid
                placed.append((k, sticker, x, y))
                break
    return placed


@dataclass(frozen=True)
class _Paint:
    ink: Floats
    outline: Floats
    value: int


def _paint(image: Floats, mask: NDArray[np.uint8], at: tuple[int, int], sticker: _Sticker, paint: _Paint) -> None:
    """Lay ``sticker`` on ``image`` ``(S, S, 3)`` and ``mask`` ``(S, S)``, its corner at ``at``, in place."""
    x, y = at
    side = len(sticker.solid)
    region = image[y : y + side, x : x + side]
    colour = paint.outline + sticker.stroke[..., None] * (paint.ink - paint.outline)
    region += sticker.cover[..., None] * (colour - region)
    mask[y : y + side, x : x + side][sticker.solid] = paint.value


def draw_chunk(sources: Sources, look: Look, seed: int, split: str, chunk: int, count: int = CHUNK) -> Scenes:
    """The first ``count`` scenes of chunk ``chunk``; equal arguments give equal scenes in any process."""
    rng = np.random.default_rng([seed, list(PHOTO_COLUMNS).index(split), chunk])
    plan = _plan(rng, sources, split, look.size)
    images = _backgrounds(plan, sources.photos, look, count)
    masks = np.zeros(images.shape[:3], dtype=np.uint8)
    boxes = np.zeros((count, MAX_OBJECTS, 4), dtype=np.float32)
    box_labels, used = np.full((2, count, MAX_OBJECTS), -1, dtype=np.int64)
    box_counts = np.zeros(count, dtype=np.int64)
    for i in range(count):
        placed = _place(plan, i, sources.digits, look.size)
        box_counts[i] = len(placed)
        for slot, (k, sticker, x, y) in reversed(list(enumerate(placed))):
            used[i, slot] = plan.digit[i, k]
            box_labels[i, slot] = sources.labels[used[i, slot]]
            boxes[i, slot] = np.add(sticker.box(), (x, y, x, y))
            paint = _Paint(plan.ink[i, k], plan.outline[i, k], int(box_labels[i, slot]) + 1)
            _paint(images[i], masks[i], (x, y), sticker, paint)
    images += look.noise * rng.standard_normal((CHUNK, *images.shape[1:]), np.float32)[:count]
    np.clip(images, 0, 1, out=images)
    return Scenes(
        images=(images * 255 + 0.5).astype(np.uint8),
        masks=masks,
        label_array=box_labels[:, 0].copy(),
        boxes=boxes,
        box_labels=box_labels,
        box_counts=box_counts,
        digit_indices=used,
        background_columns=np.stack([plan.left, plan.left + plan.side], axis=1)[:count],
    )
