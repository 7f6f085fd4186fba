"""Which measures are shown in percent, known without PyTorch."""

_SHARES = frozenset({"accuracy", "balanced-accuracy"})


def is_share(measure: str) -> bool:
    """Return whether a measure is a share of examples, by its name."""
    return measure in _SHARES or measure.startswith("top-")


def is_lower_better(measure: str) -> bool:
    """Return whether small values are good ones, by the measure's name."""
    return any(word in measure for word in ("loss", "error", "mse", "mae", "deviance", "perplexity"))
