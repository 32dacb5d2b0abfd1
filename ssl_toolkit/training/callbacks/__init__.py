"""What is written and shown while a run trains. Callbacks read what a step returned and never touch the loop."""

from ssl_toolkit.training.callbacks.bar import TrainingBar
from ssl_toolkit.training.callbacks.metrics import MetricsFile
from ssl_toolkit.training.callbacks.unreadable import UnreadableFile

__all__ = ["MetricsFile", "TrainingBar", "UnreadableFile"]
