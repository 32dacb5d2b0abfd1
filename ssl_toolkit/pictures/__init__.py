"""Pictures of what a backbone sees: matches, maps in colour, similarity, and a map of images."""

from ssl_toolkit.pictures.compute import (
    Embed,
    Seen,
    features_themselves,
    match_examples,
    pca_colours,
    see,
    similarity,
)
from ssl_toolkit.pictures.layouts import LAYOUTS, check_layout, image_map
from ssl_toolkit.pictures.page import compact, similarity_page

__all__ = [
    "LAYOUTS",
    "Embed",
    "Seen",
    "check_layout",
    "compact",
    "features_themselves",
    "image_map",
    "match_examples",
    "pca_colours",
    "see",
    "similarity",
    "similarity_page",
]
