"""Views of images with their crop boxes."""

from ssl_toolkit.views.batch import View, ViewBatch
from ssl_toolkit.views.engine import Engine, choose_engine, view_loader
from ssl_toolkit.views.loader import EpochBatches, ViewLoader
from ssl_toolkit.views.spec import ViewGroup, ViewsConfig
from ssl_toolkit.views.torch_engine import ViewDataset

__all__ = [
    "Engine",
    "EpochBatches",
    "View",
    "ViewBatch",
    "ViewDataset",
    "ViewGroup",
    "ViewLoader",
    "ViewsConfig",
    "choose_engine",
    "view_loader",
]
