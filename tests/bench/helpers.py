"""Sizes at which a bench takes a second."""

from __future__ import annotations

TINY_CASES = [
    f"sizes.{case}.{key}={value}" for case in "ABC" for key, value in (("batch", 6), ("dim", 16), ("local_dim", 8))
]
TINY = {
    "criterion": ["rounds=2", "nt_xent=8", "ranks.batch=32", "ranks.dim=64", "ranks.local_dim=8", *TINY_CASES],
    "step": [
        "rounds=1",
        "backbone=tiny_resnet",
        "batch_size=4",
        "image_size=48",
        "head=[16,16]",
        "precision=fp32",
    ],
    "linear": [
        "rounds=1",
        "backbone=tiny_resnet",
        "batch_size=4",
        "image_size=32",
        "classes=3",
        "precision=fp32",
        "cached_images=40",
        "cached_features=5",
        "cached_classes=4",
        "cached_epochs=1",
    ],
    "train": [
        "rounds=1",
        "cases=tiny",
        "+sizes.tiny.backbone=tiny_resnet",
        "+sizes.tiny.image_size=48",
        "+sizes.tiny.batch_size=4",
        "head=[16,16]",
        "accumulate=2",
        "images=8",
        "steps=2",
        "workers=0",
    ],
    "knn": ["rounds=1", "bank=300", "queries=40", "dim=16", "classes=5", "ks=[3,20]", "noise=1"],
    "views": ["rounds=1", "recipes=small", "images=8", "height=40", "width=48", "batch_size=4", "workers=0"],
}
"""Overrides by suite."""
