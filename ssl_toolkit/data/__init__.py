"""Data sets: images with optional labels and masks, built by name from a config."""

from ssl_toolkit.data.base import SPLITS, DataConfig, Image, ImageDataset, Objects
from ssl_toolkit.data.catalog import DATASETS, build_dataset
from ssl_toolkit.data.digit_scenes import DigitScenes, DigitScenesConfig
from ssl_toolkit.data.fashion_mnist import FashionMnist, FashionMnistConfig
from ssl_toolkit.data.files import FileConfig, FileDataset
from ssl_toolkit.data.folder import FolderConfig, FolderDataset

__all__ = [
    "DATASETS",
    "SPLITS",
    "DataConfig",
    "DigitScenes",
    "DigitScenesConfig",
    "FashionMnist",
    "FashionMnistConfig",
    "FileConfig",
    "FileDataset",
    "FolderConfig",
    "FolderDataset",
    "Image",
    "ImageDataset",
    "Objects",
    "build_dataset",
]
