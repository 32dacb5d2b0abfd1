"""Pretraining methods, interchangeable by name. A new one is a file in this folder that registers itself."""

import importlib
import pkgutil

from ssl_toolkit.methods.base import METHODS, Embedded, FeatureSearch, JointEmbedding, Method, MethodOutput
from ssl_toolkit.methods.simclr import SimCLR, SimCLRConfig
from ssl_toolkit.methods.simclr_l import SimCLRL, SimCLRLConfig
from ssl_toolkit.methods.vicreg import VICReg, VICRegConfig
from ssl_toolkit.methods.vicregl import VICRegL, VICRegLConfig

for _module in pkgutil.iter_modules(__path__):  # each file registers what it defines
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "METHODS",
    "Embedded",
    "FeatureSearch",
    "JointEmbedding",
    "Method",
    "MethodOutput",
    "SimCLR",
    "SimCLRConfig",
    "SimCLRL",
    "SimCLRLConfig",
    "VICReg",
    "VICRegConfig",
    "VICRegL",
    "VICRegLConfig",
]
