"""Views of images with their crop boxes."""

from ssl_toolkit.views.batch import View, ViewBatch
from ssl_toolkit.views.loader import EpochBatches, ViewLoader
from ssl_toolkit.views.spec import ViewGroup, ViewsConfig
from ssl_toolkit.views.torch_engine import ViewDataset

__all__ = ["EpochBatches", "View", "ViewBatch", "ViewDataset", "ViewGroup", "ViewLoader", "ViewsConfig"]
