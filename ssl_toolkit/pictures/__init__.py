"""Pictures of what a backbone sees: matches, maps in colour, similarity, and a map of images."""

from ssl_toolkit.pictures.compute import Seen, image_map, match_examples, pca_colours, see, similarity

__all__ = ["Seen", "image_map", "match_examples", "pca_colours", "see", "similarity"]
