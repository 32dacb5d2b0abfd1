"""Evaluation of frozen backbones: how good the features are, whatever trained them."""

from ssl_toolkit.evaluation.clustering import ClusteringConfig
from ssl_toolkit.evaluation.detection import DetectionConfig, DetectionFinetuneConfig
from ssl_toolkit.evaluation.features import FeatureBank, Preparation, calibrate_batchnorm, extract
from ssl_toolkit.evaluation.finetune import FinetuneConfig
from ssl_toolkit.evaluation.knn import KnnConfig, knn_predict
from ssl_toolkit.evaluation.linear import LinearConfig
from ssl_toolkit.evaluation.linear_augmented import LinearAugmentedConfig
from ssl_toolkit.evaluation.local_matching import MatchingConfig
from ssl_toolkit.evaluation.match_rules import MatchRulesConfig
from ssl_toolkit.evaluation.protocol import PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.results import Result, grid_table, summary_table
from ssl_toolkit.evaluation.segmentation import SegmentationAugmentedConfig, SegmentationConfig
from ssl_toolkit.evaluation.source import Source, file_source, run_source, untrained_source
from ssl_toolkit.evaluation.spectrum import SpectrumConfig
from ssl_toolkit.evaluation.suite import EvalConfig, chosen_protocols, eval_config, evaluate, evaluate_on

__all__ = [
    "PROTOCOLS",
    "ClusteringConfig",
    "DetectionConfig",
    "DetectionFinetuneConfig",
    "EvalConfig",
    "EvalData",
    "FeatureBank",
    "FinetuneConfig",
    "KnnConfig",
    "LinearAugmentedConfig",
    "LinearConfig",
    "MatchRulesConfig",
    "MatchingConfig",
    "Outcome",
    "Preparation",
    "Protocol",
    "Result",
    "SegmentationAugmentedConfig",
    "SegmentationConfig",
    "Source",
    "SpectrumConfig",
    "calibrate_batchnorm",
    "chosen_protocols",
    "eval_config",
    "evaluate",
    "evaluate_on",
    "extract",
    "file_source",
    "grid_table",
    "knn_predict",
    "run_source",
    "summary_table",
    "untrained_source",
]
