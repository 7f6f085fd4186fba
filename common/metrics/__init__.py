"""What a model's outputs are judged by beside the loss, what they are compared with, and how sure that is."""

from nufed.common.metrics.judged import Judged, judged
from nufed.common.metrics.judging import Judging, evaluate_metrics, judging, metrics_for
from nufed.common.metrics.registry import METRICS, SPLITS, Metric

__all__ = [
    "METRICS",
    "SPLITS",
    "Judged",
    "Judging",
    "Metric",
    "evaluate_metrics",
    "judged",
    "judging",
    "metrics_for",
]
