"""Synthetic run folders: everything a report reads, made without training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE, VIEW, GRID = 64, 48, (6, 6)
CLASSES = ("background", *(f"digit {i}" for i in range(10)))
TERMS = ("global_invariance", "global_variance", "global_covariance")
LOCAL_TERMS = ("local_invariance", "local_variance", "local_covariance")


def scenes(count: int, seed: int) -> tuple[NDArray, NDArray]:
    """``(count, SIDE, SIDE, 3)`` uint8 images of coloured discs on a soft texture, and their class masks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    images, masks = [], []
    for _ in range(count):
        waves = [np.sin(x / rng.uniform(4, 12) + y / rng.uniform(4, 12)) for _ in range(3)]
        image = 110 + 25 * np.stack(waves, -1) + rng.normal(0, 6, (SIDE, SIDE, 3))
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        for label in rng.choice(np.arange(1, 11), size=int(rng.integers(1, 4)), replace=False):
            cx, cy, radius = *rng.uniform(16, 48, 2), rng.uniform(7, 14)
            inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
            mask[inside] = label
            image[inside] = rng.uniform(20, 235, 3)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
        masks.append(mask)
    return np.stack(images), np.stack(masks)


def noisy(mask: NDArray, error: float, seed: int) -> NDArray:
    """``mask`` seen through cells of 4 x 4 pixels, a share ``error`` of them of a random class."""
    rng = np.random.default_rng(seed)
    coarse = mask[:, 2::4, 2::4].copy()
    wrong = rng.random(coarse.shape) < error
    coarse[wrong] = rng.integers(0, len(CLASSES), int(wrong.sum()))
    return coarse.repeat(4, 1).repeat(4, 2)


def crop(image: NDArray, box: NDArray, flip: bool) -> NDArray:
    """``image`` resampled in ``box`` to ``(VIEW, VIEW, 3)`` by nearest pixel."""
    steps = (np.arange(VIEW) + 0.5) / VIEW
    xs = (box[0] + steps * (box[2] - box[0])).astype(int)
    ys = (box[1] + steps * (box[3] - box[1])).astype(int)
    view = image[ys][:, xs]
    return view[:, ::-1] if flip else view


def loop_centres(box: NDArray, flip: bool, grid: tuple[int, int]) -> list[tuple[float, float]]:
    """Cell centres one by one, the oracle: mirror the view's own coordinate, then place it in the box."""
    points = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            u, v = (column + 0.5) / grid[1], (row + 0.5) / grid[0]
            u = 1.0 - u if flip else u
            points.append((box[0] + u * (box[2] - box[0]), box[1] + v * (box[3] - box[1])))
    return points


def match_arrays(count: int, seed: int, blur: float) -> dict[str, NDArray]:
    """The arrays of ``matches.npz``; ``blur`` is how far in pixels feature matches stray."""
    rng = np.random.default_rng(seed)
    images, _ = scenes(count, seed)
    size = rng.uniform(30, 60, (2, count, 2))
    corner = rng.uniform(0, 1, (2, count, 2)) * (SIDE - size)
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    flips = rng.random((2, count)) < 0.5
    centres = np.array([[loop_centres(boxes[v, i], flips[v, i], GRID) for i in range(count)] for v in (0, 1)])
    arrays: dict[str, NDArray] = {f"seed_{i}": images[i] for i in range(count)}
    arrays["grid"] = np.array(GRID)
    for v, name in enumerate("ab"):
        arrays[f"view_{name}"] = np.stack([crop(images[i], boxes[v, i], flips[v, i]) for i in range(count)])
        arrays[f"box_{name}"], arrays[f"flip_{name}"] = boxes[v], flips[v]
    for kind, stray in (("location", 0.0), ("feature", blur)):
        moved = centres[0] + rng.normal(0, 1, centres[0].shape) * stray
        distance = np.linalg.norm(moved[:, :, None] - centres[1][:, None], axis=-1)
        arrays[kind] = distance.argmin(-1)
        arrays[f"{kind}_distance"] = distance.min(-1)
        arrays[f"{kind}_kept"] = distance.min(-1).argsort(-1).argsort(-1) < 14
    return arrays


def write_metrics(path: Path, local: bool, seed: int, steps: int = 700) -> None:
    rng = np.random.default_rng(seed)
    terms = [*TERMS, *(LOCAL_TERMS if local else ())]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "epoch", "loss", "lr", "images_per_second", *terms])
        for step in range(0, steps, 5):
            values = [(2 + k + 20 * np.exp(-step / 80)) * rng.lognormal(0, 0.08) / 4**k for k in range(len(terms))]
            lr = 1.5e-3 * min(step / 30, 0.5 + 0.5 * np.cos(np.pi * step / steps))
            speed = f"{rng.normal(540, 20):.0f}" if step % 10 == 0 else ""
            writer.writerow([step, step // 48, f"{sum(values):.5f}", f"{lr:.3e}", speed, *map("{:.5f}".format, values)])


def write_results(folder: Path, score: float, miou: float, fingerprint: str = "ab12") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "data": "digit_scenes",
        "backbone": "resnet_mini",
        "checkpoint": "checkpoints/last.ckpt",
        "data_fingerprint": fingerprint,
        "seconds": 7.25,
        "created": "2026-11-21T10:00:00",
    }
    grid = [{"lr": lr, "top1": round(score - abs(np.log10(lr) + 1), 2)} for lr in (0.01, 0.1, 1.0)]
    protocols = {
        "knn": ({"top1": score - 20}, {"k": 20, "temperature": 0.07}, []),
        "linear": ({"top1": score, "top5": min(score + 20, 100)}, {"lr": 0.1}, grid),
        "segmentation": (
            {"miou": miou, "foreground_miou": miou - 6.1, "pixel_accuracy": 60 + miou / 1.5},
            {"lr": 0.03},
            [],
        ),
    }
    for protocol, (metrics, selected, tried) in protocols.items():
        value = {"protocol": protocol, "metrics": metrics, "selected": selected, "grid": tried}
        value["config"] = {"batch_size": 64}
        (folder / f"{protocol}.json").write_text(json.dumps({**value, **common}))


def make_run(
    path: Path,
    method: str = "vicregl",
    score: float = 70.7,
    miou: float = 32.8,
    trained: bool = True,
    seed: int = 0,
) -> Path:
    """A run folder as training and evaluation leave it; ``trained=False`` has only config and results."""
    path.mkdir(parents=True)
    local = {"alpha": 0.75, "gamma": [14, 14], "preset": "ours"} if method.endswith("l") else {}
    options = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in local.items())
    (path / "config.yaml").write_text(
        f"method:\n  name: {method}\n{options}backbone:\n  name: resnet_mini\ndata:\n  name: digit_scenes\n"
        f"  mean: [0.45, 0.45, 0.45]\nseed: {seed}\nrun_dir: {path}\n"
        "optimizer:\n  name: adamw\n  lr: 1.5e-3\ntrainer:\n  steps: 700\n  batch_size: 128\n"
    )
    write_results(path / "results", score, miou)
    images, masks = scenes(8, 99)
    np.savez(
        path / "results" / "segmentation-digit_scenes-examples.npz",
        image=images,
        mask=masks,
        prediction=noisy(masks, 0.5 - miou / 100, seed + len(method)),
        classes=np.array(CLASSES),
    )
    if trained:
        write_metrics(path / "metrics.csv", bool(local), seed + len(method))
        environment = {
            "python": "3.11.2",
            "torch": "2.15.0+cpu",
            "cpu": "2 cores",
            "git": "f00d",
            "os": "Linux",
        }
        (path / "environment.json").write_text(json.dumps(environment))
        (path / "checkpoints").mkdir()
        (path / "examples").mkdir()
        np.savez(path / "examples" / "matches.npz", **match_arrays(4, seed + 5, 4.0 if local else 9.0))
    return path
