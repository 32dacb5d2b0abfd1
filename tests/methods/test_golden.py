"""The `official` preset gives the published code's values and gradients (see tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_toolkit.criteria import VICRegCriterion
from ssl_toolkit.matching import CellAxes, cell_axes
from ssl_toolkit.methods.local import CellMap, LocalConfig, LocalCriterion, resolve

GOLDEN = Path(__file__).parent.parent / "golden"


def load(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    return json.loads(str(arrays.pop("meta"))), arrays


def axes_of(locations: np.ndarray, box: np.ndarray) -> CellAxes:
    """The golden grids are products, (B, h, w, 2) as (row, column)."""
    return CellAxes(torch.tensor(locations[:, :, 0, 0]), torch.tensor(locations[:, 0, :, 1]), torch.tensor(box))


@pytest.mark.parametrize("name", ["vicregl_two_views", "vicregl_two_views_top_gamma", "vicregl_multicrop"])
def test_official_preset_equals_the_published_code(name: str) -> None:
    meta, arrays = load(name)
    views = len(meta["sides"])
    num_large = sum(side == 7 for side in meta["sides"])
    embeddings = [torch.tensor(arrays[f"embedding{i}"], requires_grad=True) for i in range(views)]
    vectors = [torch.tensor(arrays[f"maps{i}"], requires_grad=True) for i in range(views)]
    config = resolve(
        LocalConfig(
            gamma=[float(g) for g in meta["num_matches"]],
            feature_gamma=None if meta["l2_all_matches"] else [float(g) for g in meta["num_matches"]],
        ),
        "official",
    )
    inv, var, cov = meta["coeffs"]
    criterion = VICRegCriterion(inv, var, cov)
    maps = [
        CellMap(vectors[i], axes_of(arrays[f"locations{i}"], arrays[f"boxes{i}"]), i < num_large) for i in range(views)
    ]

    whole = criterion.views(embeddings, num_large)
    local = LocalCriterion(config, criterion)(maps)
    loss = meta["alpha"] * whole.total + (1 - meta["alpha"]) * local.total
    loss.backward()

    for term, key in (("invariance", "inv"), ("variance", "var"), ("covariance", "cov")):
        assert whole.terms[term].item() == pytest.approx(float(arrays[f"global_{key}"]), rel=1e-6)
        both = local.terms[f"location_{term}"] + local.terms[f"feature_{term}"]
        assert both.item() == pytest.approx(float(arrays[f"local_{key}"]), rel=1e-6)
    assert loss.item() == pytest.approx(float(arrays["total"]), rel=1e-6)
    for i in range(views):
        for tensor, key in ((embeddings[i], f"grad_embedding{i}"), (vectors[i], f"grad_maps{i}")):
            assert tensor.grad is not None
            expected = torch.tensor(arrays[key], dtype=torch.float64)
            error = (tensor.grad - expected).norm() / expected.norm()
            assert error < 1e-5, key


def test_location_grids_equal_the_published_code() -> None:
    with np.load(GOLDEN / "location_grids.npz", allow_pickle=False) as arrays:
        for k in range(12):
            n = int(arrays[f"n{k}"])
            box = torch.tensor(arrays[f"box{k}"], dtype=torch.float64)[None]
            axes = cell_axes(box, n, n, torch.tensor([bool(arrays[f"flip{k}"])]))
            expected = torch.tensor(arrays[f"grid{k}"], dtype=torch.float64).reshape(1, n * n, 2)
            torch.testing.assert_close(axes.points(), expected, rtol=1e-6, atol=1e-4)
