"""Published checkpoints: importers into this package's backbones."""

from ssl_toolkit.zoo.official import OFFICIAL_ARCHITECTURES, convert_official, load_official

__all__ = ["OFFICIAL_ARCHITECTURES", "convert_official", "load_official"]
