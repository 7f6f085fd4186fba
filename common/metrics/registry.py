"""The metrics by name: what each means, for which tasks, within which range, and whether more is better.

The loss is not among them: it is what is descended on, and every task has it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nufed.common.metric_looks import LOOKS, Look
from nufed.common.metrics import classes, labels, positions, values
from nufed.common.metrics.judged import Judged

Compute = Callable[[Judged], Tensor]
"""From outputs and targets to one number for each client or step, [...] in float64; NaN where it is undefined."""


@dataclass(frozen=True)
class Metric:
    """One way of judging outputs.

    Attributes:
        meaning: one line.
        look: how its numbers are read.
        computes: how it is computed, by task.
        undefined: where it is NaN; empty where that is nowhere.
        trials: by task where the metric is a share of independent trials: (outputs [N, ...], targets) -> [N], 1 for a
            success, 0 for a failure, -1 for an example that is no trial.
        by_output: task -> the metric of each of several outputs.
    """

    meaning: str
    look: Look
    computes: Mapping[str, Compute]
    undefined: str = ""
    trials: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict, repr=False)
    by_output: Mapping[str, values.OfEach] = field(default_factory=dict, repr=False)


SPLITS = ("test", "validation")


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).long()


def _hits_of(number: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: torch.where(targets == number, _hits(outputs, targets), -1)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "share of examples (of labels, pixels or tokens, where an example has several) classified rightly",
        LOOKS["accuracy"],
        {
            "classification": classes.accuracy,
            "multi-label": labels.accuracy,
            "segmentation": positions.pixel_accuracy,
            "tokens": positions.token_accuracy,
        },
        "no token or pixel counts",
        trials={"classification": _hits},
    ),
    "balanced-accuracy": Metric(
        "mean over the classes of the share of each that is recognized",
        LOOKS["balanced-accuracy"],
        {"classification": classes.balanced_accuracy, "multi-label": labels.balanced_accuracy},
        "one class",
    ),
    "f1": Metric(
        "2 TP / (2 TP + FP + FN), mean over the classes or labels",
        LOOKS["f1"],
        {"classification": classes.f1, "multi-label": labels.f1},
        "no label is there or predicted",
    ),
    "auroc": Metric(
        "area under the ROC curve, of more than two classes mean of each against the others",
        LOOKS["auroc"],
        {"classification": classes.auroc, "multi-label": labels.auroc},
        "one class",
    ),
    "average-precision": Metric(
        "area under the precision-recall curve, of more than two classes mean of each against the others",
        LOOKS["average-precision"],
        {"classification": classes.average_precision, "multi-label": labels.average_precision},
        "one class",
    ),
    "sensitivity": Metric(
        "share of the positive examples (class 1 of two, or those with a label) that are recognized",
        LOOKS["sensitivity"],
        {"classification": classes.sensitivity, "multi-label": labels.sensitivity},
        "no positive example",
        trials={"classification": _hits_of(1)},
    ),
    "specificity": Metric(
        "share of the negative examples (class 0 of two, or those without a label) that are recognized",
        LOOKS["specificity"],
        {"classification": classes.specificity, "multi-label": labels.specificity},
        "no negative example",
        trials={"classification": _hits_of(0)},
    ),
    "brier": Metric(
        "mean squared error of the probabilities, of more than two classes summed over them",
        LOOKS["brier"],
        {"classification": classes.brier, "multi-label": labels.brier},
    ),
    "calibration-error": Metric(
        "how far confidence and accuracy lie apart, in 15 bins of equal width",
        LOOKS["calibration-error"],
        {"classification": classes.calibration_error, "multi-label": labels.calibration_error},
    ),
    "log-loss": Metric(
        "-log of the probability of what is the case",
        LOOKS["log-loss"],
        {"classification": classes.log_loss, "multi-label": labels.log_loss},
    ),
    "mae": Metric(
        "mean absolute error",
        LOOKS["mae"],
        {"regression": values.over_outputs(values.absolute_errors), "counts": values.rate_errors},
        by_output={"regression": values.absolute_errors},
    ),
    "rmse": Metric(
        "root of the mean squared error",
        LOOKS["rmse"],
        {"regression": values.over_outputs(values.root_mean_squares), "counts": values.rate_root_mean_square},
        by_output={"regression": values.root_mean_squares},
    ),
    "r2": Metric(
        "share of the variance explained, 1 - Σ (y - ŷ)² / Σ (y - ȳ)²",
        LOOKS["r2"],
        {"regression": values.over_outputs(values.determinations)},
        "targets all alike",
        by_output={"regression": values.determinations},
    ),
    "deviance": Metric(
        "Poisson's deviance of the rates, 2 (y log(y / λ) - (y - λ))", LOOKS["deviance"], {"counts": values.deviance}
    ),
    "dice": Metric(
        "2 TP / (2 TP + FP + FN) of pixels, mean over the classes but the background",
        LOOKS["dice"],
        {"segmentation": positions.dice},
        "background alone, and predicted as such",
    ),
    "iou": Metric(
        "TP / (TP + FP + FN) of pixels, mean over the classes but the background",
        LOOKS["iou"],
        {"segmentation": positions.iou},
        "background alone, and predicted as such",
    ),
    "perplexity": Metric(
        "exp of the mean of -log of the probability of the right token",
        LOOKS["perplexity"],
        {"tokens": positions.perplexity},
        "no token counts",
    ),
}
ACCURACY = METRICS["accuracy"]
