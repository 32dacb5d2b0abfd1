"""Detection: a linear layer on frozen maps, and Faster R-CNN fine-tuned."""

from ssl_toolkit.evaluation.detection.finetune import DetectionFinetuneConfig
from ssl_toolkit.evaluation.detection.frozen import DetectionConfig

__all__ = ["DetectionConfig", "DetectionFinetuneConfig"]
