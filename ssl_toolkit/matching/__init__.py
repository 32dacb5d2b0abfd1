"""Which local feature of one view goes with which of another."""

from ssl_toolkit.matching.grid import CellAxes, cell_axes
from ssl_toolkit.matching.neighbours import (
    Matches,
    Nearest,
    nearest_features,
    nearest_locations,
    pixel_distances,
    squared_distances,
    top_gamma,
    within,
)
from ssl_toolkit.matching.statistics import match_statistics

__all__ = [
    "CellAxes",
    "Matches",
    "Nearest",
    "cell_axes",
    "match_statistics",
    "nearest_features",
    "nearest_locations",
    "pixel_distances",
    "squared_distances",
    "top_gamma",
    "within",
]
