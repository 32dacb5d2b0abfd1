"""Tables of matches against loops."""

from __future__ import annotations

import numpy as np
import torch

from ssl_toolkit.matching import cell_axes, match_tables


def test_tables_are_those_of_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[[0.0, 0, 40, 30], [10, 5, 50, 60]], [[5, 5, 25, 45], [0, 0, 30, 30]]])
    flips = torch.tensor([[False, True], [True, False]])
    query, key = (cell_axes(box, 3, 4, flip) for box, flip in zip(boxes, flips))
    vectors = [torch.randn(2, 12, 5, generator=generator) for _ in range(2)]
    tables = match_tables(query, key, (vectors[0], vectors[1]), gamma=4)

    def centre(view: int, image: int, cell: int) -> np.ndarray:
        x0, y0, x1, y1 = boxes[view, image].tolist()
        u, v = (cell % 4 + 0.5) / 4, (cell // 4 + 0.5) / 3
        u = 1 - u if flips[view, image] else u
        return np.array([x0 + u * (x1 - x0), y0 + v * (y1 - y0)])

    for image in range(2):
        apart = np.array([[np.linalg.norm(centre(0, image, q) - centre(1, image, k)) for k in range(12)]
                          for q in range(12)])  # fmt: skip
        unlike = ((vectors[0][image][:, None] - vectors[1][image][None]) ** 2).sum(-1).double().numpy()
        for name, cost in (("location", apart), ("feature", unlike)):
            table = tables[name]
            found = cost[np.arange(12), table.key[image]]
            np.testing.assert_allclose(found, cost.min(1), rtol=1e-4, atol=1e-4)
            assert table.kept[image].sum() == 4
            best = np.sort(cost.min(1))[:4]
            np.testing.assert_allclose(np.sort(found[table.kept[image].numpy()]), best, rtol=1e-4, atol=1e-4)
            order = np.argsort(table.distance[image].numpy(), kind="stable")
            np.testing.assert_allclose(found[order], np.sort(found), rtol=1e-3, atol=1e-3)


def test_gamma_is_at_most_the_cells() -> None:
    box = torch.tensor([[0.0, 0, 10, 10]])
    axes = cell_axes(box, 2, 2, torch.tensor([False]))
    tables = match_tables(axes, axes, (torch.eye(4)[None], torch.eye(4)[None]), gamma=99)
    assert all(bool(table.kept.all()) for table in tables.values())
    assert torch.equal(tables["feature"].key, torch.arange(4)[None])


def test_only_mutual_keeps_the_closest_of_the_pairs_that_are_each_others_nearest() -> None:
    generator = torch.Generator().manual_seed(1)
    axes = [cell_axes(torch.tensor([[0.0, 0, 40, 40]]), 4, 4, torch.tensor([False])) for _ in range(2)]
    vectors = [torch.randn(1, 16, 3, generator=generator) for _ in range(2)]
    cost = ((vectors[0][0][:, None] - vectors[1][0][None]) ** 2).sum(-1).double().numpy()
    both_ways = [q for q in range(16) if cost[:, cost[q].argmin()].argmin() == q]
    assert 3 < len(both_ways) < 16
    closest = sorted(both_ways, key=lambda q: cost[q].min())
    for gamma in (3, 16):
        tables = match_tables(axes[0], axes[1], (vectors[0], vectors[1]), gamma, only_mutual=True)
        assert tables["feature"].kept[0].nonzero().flatten().tolist() == sorted(closest[:gamma])
        assert tables["location"].kept.sum() == gamma
        np.testing.assert_array_equal(tables["feature"].key[0], cost.argmin(1))
