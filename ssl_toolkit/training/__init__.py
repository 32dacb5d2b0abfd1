"""Pretraining: the Lightning module, callbacks and run folders. Knows no method by name."""

from ssl_toolkit.training.checkpoints import checkpoint_path
from ssl_toolkit.training.export import checkpoint_backbone
from ssl_toolkit.training.fingerprint import is_free
from ssl_toolkit.training.options import TrainerConfig
from ssl_toolkit.training.parts import assemble, resolved
from ssl_toolkit.training.pretrain import carry_on, prepare, pretrain, resume, start
from ssl_toolkit.training.replay import replay
from ssl_toolkit.training.restore import load_method
from ssl_toolkit.training.run import new_run_folder, read_run_config, sweep_name, write_baseline_files, write_run_files

__all__ = [
    "TrainerConfig",
    "assemble",
    "carry_on",
    "checkpoint_backbone",
    "checkpoint_path",
    "is_free",
    "load_method",
    "new_run_folder",
    "prepare",
    "pretrain",
    "read_run_config",
    "replay",
    "resolved",
    "resume",
    "start",
    "sweep_name",
    "write_baseline_files",
    "write_run_files",
]
