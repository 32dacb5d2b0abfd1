"""Published checkpoints: their names, their files, and importers into this package's backbones."""

from ssl_toolkit.zoo.download import zoo_file, zoo_path
from ssl_toolkit.zoo.importers import Imported, load_checkpoint
from ssl_toolkit.zoo.index import IMAGENET_MEAN, IMAGENET_STD, MEASURES, TABLES, Published, chosen, published, zoo
from ssl_toolkit.zoo.loading import load_published, loadable

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MEASURES",
    "TABLES",
    "Imported",
    "Published",
    "chosen",
    "load_checkpoint",
    "load_published",
    "loadable",
    "published",
    "zoo",
    "zoo_file",
    "zoo_path",
]
