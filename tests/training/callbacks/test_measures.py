"""Measures of spread against closed forms, NumPy and singular values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssl_toolkit.training.callbacks.measures import RANK_ROWS, effective_rank, mean_correlation, relative_spread


def rank_me(x: torch.Tensor) -> float:
    """Eq. 2 of RankMe, from singular values."""
    singular = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share = singular / singular.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (16, 16)])
def test_effective_rank_is_rank_me(n: int, d: int) -> None:
    x = torch.randn(n, d) @ torch.diag(torch.logspace(0, -4, d)) + 3.0
    assert float(effective_rank(x)) == pytest.approx(rank_me(x), rel=1e-5)
    assert float(effective_rank(1e-6 * x)) == pytest.approx(rank_me(x), rel=1e-5)  # of no scale
    assert float(effective_rank(x.bfloat16())) == pytest.approx(rank_me(x.bfloat16()), rel=1e-5)


def test_effective_rank_of_known_spectra() -> None:
    line = torch.randn(1, 64).expand(32, 64) * torch.rand(32, 1)
    assert float(effective_rank(line)) == pytest.approx(1.0, abs=1e-3)
    assert float(effective_rank(torch.eye(32))) == pytest.approx(32.0, rel=1e-4)
    assert float(effective_rank(torch.diag(torch.tensor([1.0, 1.0, 1e-9])))) == pytest.approx(2.0, rel=1e-3)
    assert math.isnan(effective_rank(torch.zeros(4, 4)))
    assert math.isnan(effective_rank(torch.full((4, 4), math.inf)))


def test_effective_rank_takes_the_first_rows_of_a_large_batch() -> None:
    x = torch.randn(RANK_ROWS + 5, 3)
    assert float(effective_rank(x)) == pytest.approx(rank_me(x[:RANK_ROWS]), rel=1e-6)


@pytest.mark.parametrize("d", [2, 5, 1500])  # the last in two strips
def test_mean_correlation_equals_numpy(d: int) -> None:
    x = torch.randn(60, d) @ torch.randn(d, d) + 100 * torch.randn(d)
    matrix = np.abs(np.corrcoef(x.double().numpy().T))
    expected = matrix[~np.eye(d, dtype=bool)].mean()
    assert float(mean_correlation(x)) == pytest.approx(expected, rel=1e-3)


def test_mean_correlation_of_dimensions_that_do_not_vary() -> None:
    ramp = torch.arange(8.0)
    still = torch.full((8,), 0.1)
    assert float(mean_correlation(torch.stack([ramp, -3 * ramp], 1))) == pytest.approx(1.0)
    assert float(mean_correlation(torch.stack([ramp, -ramp, still], 1))) == pytest.approx(2 / 6)
    assert float(mean_correlation(torch.stack([still, 7 * still], 1))) == 0.0
    assert float(mean_correlation(ramp[:, None])) == 0.0


def test_relative_spread_is_1_on_the_sphere_and_0_on_a_ray() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 32, generator=generator)
    assert float(relative_spread(x)) == pytest.approx(1.0, abs=0.02)
    assert float(relative_spread(1e3 * x)) == pytest.approx(float(relative_spread(x)))
    assert float(relative_spread(torch.rand(50, 1) * torch.randn(1, 32))) == pytest.approx(0.0, abs=1e-5)
    shifted = x + 10 * torch.ones(32)  # all near one direction, each off it by about a tenth
    assert float(relative_spread(shifted)) == pytest.approx(0.1, abs=0.01)
