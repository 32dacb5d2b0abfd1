"""Features of a folder of images, written to one file; a stopped one goes on."""

from ssl_toolkit.embedding.embed import Embedded, EmbedOptions, embed
from ssl_toolkit.embedding.images import Images, find_all

__all__ = ["EmbedOptions", "Embedded", "Images", "embed", "find_all"]
