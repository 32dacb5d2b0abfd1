"""View recipes: what is refused, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from ssl_toolkit.errors import UserError
from ssl_toolkit.registry import typed
from ssl_toolkit.views import ViewsConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": []}, "groups must start with large views"),
        ({"groups": [{"large": False}]}, "groups must start with large"),
        ({"groups": [{}, {"large": False}, {}]}, "large views before small"),
        ({"groups": [{"size": 4}]}, "size >= 8"),
        ({"groups": [{"scale": [0.5, 0.1]}]}, "scale must be two positive numbers"),
        ({"groups": [{"scale": [0.5, 2.0]}]}, "at most 1"),
        ({"groups": [{"flip": 2}]}, "flip is a probability"),
        ({"groups": [{"blur": []}]}, "blur must be a list"),
        ({"groups": [{"hue": 0.7}]}, "hue between 0 and 0.5"),
        ({"groups": [{"interpolation": "nearest"}]}, "interpolation must be"),
        ({"groups": [{"colour": 1}]}, "colour"),
        ({"engine": "magic"}, "engine must be auto, torch or dali, not 'magic'"),
    ],
)
def test_bad_recipes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(ViewsConfig, options, "views")
