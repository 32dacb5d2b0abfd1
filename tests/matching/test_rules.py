"""Rules for feature matches against loops over cells."""

from __future__ import annotations

import pytest
import torch

from ssl_toolkit.matching import (
    Nearest,
    mutual,
    nearest_features,
    ratios,
    spread_out,
    squared_distances,
    top_gamma,
)


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("p", "q"), [(12, 12), (9, 4), (1, 6)])
def test_mutual_pairs_equal_loops(p: int, q: int) -> None:
    x, y = vectors(5, p, 3), vectors(5, q, 3, seed=1)
    squared = squared_distances(x, y)
    there, back = nearest_features(squared), nearest_features(squared.mT)
    found = mutual(there, back)
    for b in range(5):
        for i in range(p):
            key = int(torch.stack([(x[b, i] - v).norm() for v in y[b]]).argmin())
            home = int(torch.stack([(y[b, key] - v).norm() for v in x[b]]).argmin())
            assert bool(found[b, i]) is (home == i)
    assert found.any(1).all()  # the closest pair of all is mutual


def test_ratios_equal_loops() -> None:
    x, y = vectors(4, 7, 3), vectors(4, 5, 3, seed=1)
    found = ratios(squared_distances(x, y))
    for b in range(4):
        for i in range(7):
            first, second = sorted((x[b, i] - v).norm().item() for v in y[b])[:2]
            assert found[b, i].item() == pytest.approx(first / second, rel=1e-9)


def test_ratios_where_nothing_is_distinctive() -> None:
    assert ratios(torch.zeros(1, 2, 3)).tolist() == [[1.0, 1.0]]
    assert ratios(torch.tensor([[[5.0], [0.0]]])).tolist() == [[1.0, 1.0]]
    assert ratios(torch.tensor([[[0.0, 4.0], [9.0, 9.0]]])).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 3), (1, 4), (2, 1)])
def test_spread_takes_turns_between_blocks(height: int, width: int) -> None:
    distance = vectors(3, height * width).abs()
    found = spread_out(distance, width)
    for b in range(3):
        seen: dict[tuple[int, int], int] = {}
        expected = []
        for place, p in enumerate(sorted(range(height * width), key=lambda p: distance[b, p].item())):
            block = (p // width // 2, p % width // 2)
            expected.append((seen.get(block, 0), place, p))
            seen[block] = seen.get(block, 0) + 1
        assert found[b].argsort().tolist() == [p for _, _, p in sorted(expected)]
        assert [int(found[b, p]) for turn, _, p in expected] == [turn for turn, _, _ in expected]


def test_spread_keeps_every_corner_of_the_map() -> None:
    """The closest nine pairs lie in one corner; of nine blocks each gets its own pair."""
    distance = torch.arange(36.0).view(6, 6).add(100)
    distance[:3, :3] = torch.arange(9.0).view(3, 3)
    nearest = Nearest(torch.zeros(1, 36, dtype=torch.long), distance.view(1, 36))
    plain = top_gamma(nearest, 9).query[0]
    assert set((plain // 6).tolist()) == {0, 1, 2}
    spread = top_gamma(nearest, 9, score=spread_out(nearest.distance, 6)).query[0]
    assert len({(int(c) // 12, int(c) % 6 // 2) for c in spread}) == 9


def test_a_score_decides_what_is_kept_and_in_which_order() -> None:
    nearest = Nearest(torch.tensor([[3, 1, 2]]), torch.tensor([[0.1, 0.2, 0.3]]))
    score = torch.tensor([[9.0, 2.0, 1.0]])
    assert top_gamma(nearest, 2, score=score).query.tolist() == [[1, 2]]
    kept = top_gamma(nearest, 2, "distance", score)
    assert (kept.query.tolist(), kept.key.tolist()) == ([[2, 1]], [[2, 1]])
    torch.testing.assert_close(kept.distance, torch.tensor([[0.3, 0.2]]))


def test_shapes_that_disagree_are_named() -> None:
    nearest = Nearest(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"score \(2, 4\); expected \(2, 3\)"):
        top_gamma(nearest, 2, score=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"expected \(B, P\), \(B, Q\)"):
        mutual(nearest, Nearest(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="no rows of 2 cells"):
        spread_out(torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="with Q at least 1"):
        ratios(torch.zeros(2, 3, 0))
