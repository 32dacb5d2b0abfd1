"""Published checkpoints: their names, and importers into this package's backbones."""

from ssl_toolkit.zoo.index import IMAGENET_MEAN, IMAGENET_STD, ZOO, Published, published, zoo_file
from ssl_toolkit.zoo.official import OFFICIAL_ARCHITECTURES, convert_official, load_official

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "OFFICIAL_ARCHITECTURES",
    "ZOO",
    "Published",
    "convert_official",
    "load_official",
    "published",
    "zoo_file",
]
