"""Checkpoints that others publish, in their own formats, as backbones of this package."""

from ssl_toolkit.zoo.importers.known import FORMATS
from ssl_toolkit.zoo.importers.load import Imported, load_checkpoint, mlp
from ssl_toolkit.zoo.importers.reading import read_contents

__all__ = ["FORMATS", "Imported", "load_checkpoint", "mlp", "read_contents"]
