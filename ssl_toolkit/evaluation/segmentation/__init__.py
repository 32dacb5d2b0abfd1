"""Linear segmentation: on cached features, and on images augmented anew as in the VICRegL paper."""

from ssl_toolkit.evaluation.segmentation.augmented import SegmentationAugmented
from ssl_toolkit.evaluation.segmentation.cached import Segmentation, SegmentationConfig
from ssl_toolkit.evaluation.segmentation.settings import SegmentationAugmentedConfig

__all__ = ["Segmentation", "SegmentationAugmented", "SegmentationAugmentedConfig", "SegmentationConfig"]
