"""Evaluation of frozen backbones: how good the features are, whatever trained them."""

from ssl_toolkit.evaluation.features import FeatureBank, Preparation, calibrate_batchnorm, extract
from ssl_toolkit.evaluation.knn import KnnConfig, knn_predict
from ssl_toolkit.evaluation.linear import LinearConfig
from ssl_toolkit.evaluation.protocol import PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.results import Result, summary_table
from ssl_toolkit.evaluation.segmentation import SegmentationConfig
from ssl_toolkit.evaluation.source import Source, file_source, run_source, sha256, untrained_source
from ssl_toolkit.evaluation.suite import EvalConfig, chosen_protocols, eval_config, evaluate, evaluate_on

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
    "chosen_protocols",
    "eval_config",
    "evaluate",
    "evaluate_on",
    "extract",
    "file_source",
    "knn_predict",
    "run_source",
    "sha256",
    "summary_table",
    "untrained_source",
]
