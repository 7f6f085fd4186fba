"""How numbers of a measure are read, known without PyTorch."""

SHARES = frozenset(
    {
        *(
            "accuracy",
            "balanced-accuracy",
            "f1",
            "auroc",
            "average-precision",
            "sensitivity",
            "specificity",
            "dice",
            "iou",
        ),
        "calibration-error",
    }
)
"""Measures that are shares, shown in percent."""

_LOWER = frozenset({"loss", "log-loss", "brier", "calibration-error", "mae", "rmse", "deviance", "perplexity"})


def is_share(measure: str) -> bool:
    """Return whether a measure is a share, by its name."""
    return measure in SHARES or measure.rpartition("-")[0] in SHARES


def is_lower_better(measure: str) -> bool:
    """Return whether small values are good ones, by the measure's name."""
    return measure in _LOWER or measure.rpartition("-")[0] in _LOWER
