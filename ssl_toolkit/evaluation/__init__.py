"""Evaluation of frozen backbones: how good the features are, whatever trained them."""

from ssl_toolkit.evaluation.features import FeatureBank, Preparation, calibrate_batchnorm, extract
from ssl_toolkit.evaluation.knn import KnnConfig, knn_predict
from ssl_toolkit.evaluation.linear import LinearConfig
from ssl_toolkit.evaluation.protocol import PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.results import Result, summary_table
from ssl_toolkit.evaluation.segmentation import SegmentationConfig
from ssl_toolkit.evaluation.source import Source, file_source, run_source, untrained_source
from ssl_toolkit.evaluation.suite import EvalConfig, eval_config, evaluate, evaluate_on

__all__ = [
    "PROTOCOLS",
    "EvalConfig",
    "EvalData",
    "FeatureBank",
    "KnnConfig",
    "LinearConfig",
    "Outcome",
    "Preparation",
    "Protocol",
    "Result",
    "SegmentationConfig",
    "Source",
    "calibrate_batchnorm",
    "eval_config",
    "evaluate",
    "evaluate_on",
    "extract",
    "file_source",
    "knn_predict",
    "run_source",
    "summary_table",
    "untrained_source",
]
