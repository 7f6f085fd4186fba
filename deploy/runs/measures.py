"""Which measures are shown in percent, and of which less is better, known without PyTorch."""

from nufed.common.metric_looks import look_of


def is_share(measure: str) -> bool:
    """Return whether a measure is a share, by its name."""
    return look_of(measure).is_share


def is_lower_better(measure: str) -> bool:
    """Return whether small values are good ones, by the measure's name."""
    return look_of(measure).better == "lower"
