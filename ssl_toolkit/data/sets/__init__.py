"""The data sets. A new one is a file in this folder that registers itself in `DATASETS`, and two YAMLs of its name, in
``configs/data`` and ``configs/views``."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
