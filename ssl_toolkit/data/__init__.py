"""Data sets: images with optional labels, masks and objects, built by name from a config."""

from ssl_toolkit.data import sets as sets  # each of its files registers a data set
from ssl_toolkit.data.base import SPLITS, DataConfig, Image, ImageDataset, Objects
from ssl_toolkit.data.catalog import DATASETS, build_dataset
from ssl_toolkit.data.files import FileConfig, FileDataset

__all__ = [
    "DATASETS",
    "SPLITS",
    "DataConfig",
    "FileConfig",
    "FileDataset",
    "Image",
    "ImageDataset",
    "Objects",
    "build_dataset",
]
