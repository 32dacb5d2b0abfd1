"""What is written and shown while a run trains. Callbacks read what a step returned and never touch the loop."""

from ssl_toolkit.training.callbacks.alarms import Collapse, Failures
from ssl_toolkit.training.callbacks.bar import TrainingBar
from ssl_toolkit.training.callbacks.best import BestValue
from ssl_toolkit.training.callbacks.loggers import TensorBoardRows, WandbRows, check_loggers
from ssl_toolkit.training.callbacks.matches import MatchPictures
from ssl_toolkit.training.callbacks.metrics import TIMINGS, Measures, MetricsFile
from ssl_toolkit.training.callbacks.options import MonitorConfig, Schedule
from ssl_toolkit.training.callbacks.probes import LinearProbe
from ssl_toolkit.training.callbacks.unreadable import UnreadableFile
from ssl_toolkit.training.callbacks.validation import ValidationProbe

__all__ = [
    "TIMINGS",
    "BestValue",
    "Collapse",
    "Failures",
    "LinearProbe",
    "MatchPictures",
    "Measures",
    "MetricsFile",
    "MonitorConfig",
    "Schedule",
    "TensorBoardRows",
    "TrainingBar",
    "UnreadableFile",
    "ValidationProbe",
    "WandbRows",
    "check_loggers",
]
