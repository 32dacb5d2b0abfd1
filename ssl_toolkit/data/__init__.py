"""Data sets: images with optional labels and masks, built by name from a config."""

from ssl_toolkit.data.ade20k import Ade20k, Ade20kConfig
from ssl_toolkit.data.arrays import Arrays, ArraysConfig
from ssl_toolkit.data.base import SPLITS, DataConfig, Image, ImageDataset, Objects
from ssl_toolkit.data.catalog import DATASETS, build_dataset
from ssl_toolkit.data.cifar import Cifar10, Cifar10Config, Cifar100, Cifar100Config
from ssl_toolkit.data.cityscapes import Cityscapes, CityscapesConfig
from ssl_toolkit.data.coco import Coco, CocoConfig
from ssl_toolkit.data.cub200 import Cub200, Cub200Config
from ssl_toolkit.data.digit_scenes import DigitScenes, DigitScenesConfig
from ssl_toolkit.data.fashion_mnist import FashionMnist, FashionMnistConfig
from ssl_toolkit.data.file_list import FileListConfig, FileListDataset
from ssl_toolkit.data.files import FileConfig, FileDataset
from ssl_toolkit.data.flowers102 import Flowers102, Flowers102Config
from ssl_toolkit.data.folder import FolderConfig, FolderDataset
from ssl_toolkit.data.huggingface import HuggingFace, HuggingFaceConfig
from ssl_toolkit.data.imagenet import ImageNet, ImageNetConfig
from ssl_toolkit.data.imagenette import Imagenette, ImagenetteConfig
from ssl_toolkit.data.oxford_pets import OxfordPets, OxfordPetsConfig
from ssl_toolkit.data.stl10 import Stl10, Stl10Config
from ssl_toolkit.data.voc import Voc, VocConfig
from ssl_toolkit.data.webdataset import WebDataset, WebDatasetConfig

__all__ = [
    "DATASETS",
    "SPLITS",
    "Ade20k",
    "Ade20kConfig",
    "Arrays",
    "ArraysConfig",
    "Cifar10",
    "Cifar10Config",
    "Cifar100",
    "Cifar100Config",
    "Cityscapes",
    "CityscapesConfig",
    "Coco",
    "CocoConfig",
    "Cub200",
    "Cub200Config",
    "DataConfig",
    "DigitScenes",
    "DigitScenesConfig",
    "FashionMnist",
    "FashionMnistConfig",
    "FileConfig",
    "FileDataset",
    "FileListConfig",
    "FileListDataset",
    "Flowers102",
    "Flowers102Config",
    "FolderConfig",
    "FolderDataset",
    "HuggingFace",
    "HuggingFaceConfig",
    "Image",
    "ImageDataset",
    "ImageNet",
    "ImageNetConfig",
    "Imagenette",
    "ImagenetteConfig",
    "Objects",
    "OxfordPets",
    "OxfordPetsConfig",
    "Stl10",
    "Stl10Config",
    "Voc",
    "VocConfig",
    "WebDataset",
    "WebDatasetConfig",
    "build_dataset",
]
