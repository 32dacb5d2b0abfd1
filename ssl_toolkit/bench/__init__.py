"""``ssl-toolkit bench``: contenders timed against each other in one process.

A suite is a file in this folder that registers itself in `SUITES`, and ``configs/bench_<name>.yaml``.
"""

import importlib
import pkgutil

from ssl_toolkit.bench.base import SUITES, BenchConfig, Comparison, Contender, Counted, Outcome, Suite
from ssl_toolkit.bench.run import bench, suite_options

for _module in pkgutil.iter_modules(__path__):  # each file registers what it defines
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["SUITES", "BenchConfig", "Comparison", "Contender", "Counted", "Outcome", "Suite", "bench", "suite_options"]
