"""Backbones: an image in, feature maps and a pooled vector out."""

from ssl_toolkit.backbones.base import Backbone, BackboneConfig, Features
from ssl_toolkit.backbones.create import backbone_names, backbones, create_backbone
from ssl_toolkit.backbones.probe import map_size
from ssl_toolkit.backbones.weights import BackboneMetadata, read_backbone, read_metadata, save_backbone

__all__ = [
    "Backbone",
    "BackboneConfig",
    "BackboneMetadata",
    "Features",
    "backbone_names",
    "backbones",
    "create_backbone",
    "map_size",
    "read_backbone",
    "read_metadata",
    "save_backbone",
]
