"""What is drawn for each view: rates, ranges and orders of the recipe, independent of each other."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from ssl_toolkit.views import ViewGroup
from ssl_toolkit.views.settings import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Settings,
    random_numbers,
    settings_of,
)

COUNT = 4000
GROUP = ViewGroup(count=3, jitter=0.8, brightness=2.0, contrast=0.4, saturation=0.2, hue=0.1, gray=0.2)


def drawn(group: ViewGroup, position: int, count: int = COUNT, colour: bool = True) -> list[Settings]:
    """The settings of the view at ``position`` of ``count`` images."""
    numbers = (random_numbers(3, 1, index, group.count)[position] for index in range(count))
    return [settings_of(values, group, position, 300, 400, colour) for values in numbers]


def test_rates_are_those_of_the_recipe_at_each_position() -> None:
    for position, (blur, solarize) in enumerate([(1.0, 0.0), (0.1, 0.2), (0.1, 0.2)]):
        settings = drawn(GROUP, position)
        rates = {
            "flip": np.mean([s.flip for s in settings]) - 0.5,
            "jitter": np.mean([bool(s.jitter) for s in settings]) - 0.8,
            "gray": np.mean([s.gray for s in settings]) - 0.2,
            "blur": np.mean([s.sigma > 0 for s in settings]) - blur,
            "solarize": np.mean([s.solarize for s in settings]) - solarize,
        }
        assert max(abs(gap) for gap in rates.values()) < 0.03, rates


def test_jitter_comes_in_every_order_and_fills_its_ranges() -> None:
    jitters = [s.jitter for s in drawn(GROUP, 0) if s.jitter]
    orders = Counter(tuple(step for step, _ in jitter) for jitter in jitters)
    assert set(orders) == set(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))
    assert min(orders.values()) > 0.6 * len(jitters) / 24
    ranges = {BRIGHTNESS: (0.0, 3.0), CONTRAST: (0.6, 1.4), SATURATION: (0.8, 1.2), HUE: (-0.1, 0.1)}
    for step, (low, high) in ranges.items():
        values = np.sort([dict(jitter)[step] for jitter in jitters])
        expected = np.linspace(low, high, len(values))
        assert low <= values[0]
        assert values[-1] <= high
        assert np.abs(values - expected).max() < 0.04 * (high - low)


def test_choices_are_independent_of_each_other_and_of_other_views() -> None:
    group = ViewGroup(count=2, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, blur=[1.0])
    columns = []
    for position in range(2):
        for s in zip(*(_numbers(settings) for settings in drawn(group, position))):
            columns.append(s)
    correlation = np.corrcoef(np.array(columns, dtype=float))
    # top and left depend on the crop's height and width, which depend on each other
    for view in (0, 11):
        correlation[view : view + 4, view : view + 4] = 0
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.07


def _numbers(s: Settings) -> list[float]:
    return [*s.window, s.flip, *(value for _, value in sorted(s.jitter)), s.gray, s.sigma]


def test_images_epochs_and_seeds_differ_and_more_views_change_none() -> None:
    base = random_numbers(0, 0, 0, 2)
    for other in (random_numbers(1, 0, 0, 2), random_numbers(0, 1, 0, 2), random_numbers(0, 0, 1, 2)):
        assert not set(np.ravel(base)) & set(np.ravel(other))
    assert random_numbers(0, 0, 0, 8)[:2] == base
    assert random_numbers(2**40, 2**40, 2**40, 1) != random_numbers(2**40, 2**40, 2**40 + 1, 1)


@pytest.mark.parametrize("colour", [True, False])
def test_without_colour_what_needs_it_is_left_out_and_the_rest_stays(colour: bool) -> None:
    steps = {step for s in drawn(GROUP, 1, 200, colour) for step, _ in s.jitter}
    assert steps == ({BRIGHTNESS, CONTRAST, SATURATION, HUE} if colour else {BRIGHTNESS, CONTRAST})
    assert any(s.gray for s in drawn(GROUP, 1, 200, colour)) == colour
    assert [s.window for s in drawn(GROUP, 1, 50, colour)] == [s.window for s in drawn(GROUP, 1, 50)]
