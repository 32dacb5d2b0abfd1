"""Pretraining: the Lightning module, callbacks and run folders. Knows no method by name."""

from ssl_toolkit.training.options import TrainerConfig
from ssl_toolkit.training.parts import assemble
from ssl_toolkit.training.pretrain import pretrain, resume
from ssl_toolkit.training.run import new_run_folder, read_run_config, write_baseline_files

__all__ = [
    "TrainerConfig",
    "assemble",
    "new_run_folder",
    "pretrain",
    "read_run_config",
    "resume",
    "write_baseline_files",
]
