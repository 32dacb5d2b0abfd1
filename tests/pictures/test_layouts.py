"""Images on a plane: clusters stay together, the same twice, and what is missing is said."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.pictures import image_map, layouts

needs_umap = pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed")


@pytest.fixture
def clusters() -> Tensor:
    """Two groups of 20."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([centre + 0.05 * torch.randn(20, 8, generator=generator) for centre in torch.eye(8)[:2]])


@pytest.mark.parametrize("layout", ["tsne", pytest.param("umap", marks=needs_umap)])
def test_clusters_stay_together_and_the_map_is_the_same_twice(layout: str, clusters: Tensor) -> None:
    points = image_map(clusters, layout=layout, perplexity=5, neighbours=5, seed=0)
    assert points.shape == (40, 2)
    assert points.dtype == np.float64
    np.testing.assert_array_equal(points, image_map(clusters, layout=layout, perplexity=5, neighbours=5, seed=0))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert ((distance.argmin(1) < 20) == (np.arange(40) < 20)).mean() > 0.9  # t-SNE strands a point on some processors


@needs_umap
def test_the_layout_and_the_seed_decide(clusters: Tensor) -> None:
    points = image_map(clusters, layout="umap", neighbours=5, seed=0)
    assert (points != image_map(clusters, layout="umap", neighbours=5, seed=1)).any()
    assert (points != image_map(clusters, layout="umap", neighbours=12, seed=0)).any()
    assert (points != image_map(clusters, layout="tsne", perplexity=5, seed=0)).any()


def test_too_few_images(clusters: Tensor) -> None:
    with pytest.raises(UserError, match="perplexity=50 needs more than 40 images"):
        image_map(clusters, perplexity=50)


@needs_umap
def test_too_few_images_for_umap(clusters: Tensor) -> None:
    with pytest.raises(UserError, match="neighbours=40 needs more than 40 images"):
        image_map(clusters, layout="umap", neighbours=40)


def test_without_the_library_it_says_what_to_install(clusters: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install umap-learn, or take layout=tsne"):
        image_map(clusters, layout="umap", neighbours=5)
    assert image_map(clusters, perplexity=5).shape == (40, 2)
