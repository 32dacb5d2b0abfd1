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
from ssl_toolkit.matching.rules import RANKS, mutual, ratios, spread_out
from ssl_toolkit.matching.statistics import match_statistics
from ssl_toolkit.matching.tables import MatchTable, match_tables

__all__ = [
    "RANKS",
    "CellAxes",
    "MatchTable",
    "Matches",
    "Nearest",
    "cell_axes",
    "match_statistics",
    "match_tables",
    "mutual",
    "nearest_features",
    "nearest_locations",
    "pixel_distances",
    "ratios",
    "spread_out",
    "squared_distances",
    "top_gamma",
    "within",
]
