"""Which local feature of one view goes with which of another."""

from ssl_toolkit.matching.grid import CellAxes, cell_axes
from ssl_toolkit.matching.neighbours import (
    Matches,
    feature_matches,
    location_matches,
    matched_vectors,
    squared_distances,
)

__all__ = [
    "CellAxes",
    "Matches",
    "cell_axes",
    "feature_matches",
    "location_matches",
    "matched_vectors",
    "squared_distances",
]
