"""Pretraining: the Lightning module, callbacks and run folders. Knows no method by name."""

from ssl_toolkit.training.pretrain import TrainerConfig, assemble, pretrain, resume
from ssl_toolkit.training.run import read_run_config

__all__ = ["TrainerConfig", "assemble", "pretrain", "read_run_config", "resume"]
