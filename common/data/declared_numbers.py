"""Means and scales that a run's options give, as comma-separated numbers."""

import math
from collections.abc import Sequence

from nufed.common.errors import ConfigError
from nufed.common.statistics import NOISE


def read_numbers(text: str, option: str) -> tuple[float, ...]:
    """Return the comma-separated numbers.

    Raises:
        ConfigError: one is none, or is not finite.
    """
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError as error:
        raise ConfigError(f"{option}={text!r} is refused: expected comma-separated numbers. Correct it.") from error
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{option}={text!r} is refused: expected finite numbers. Correct it.")
    return numbers


def check_scales(means: Sequence[float], scales: Sequence[float], option: str, what: str) -> None:
    """Refuse scales that are 0 or below, or within the rounding of what they scale.

    Args:
        means: [K], of what is scaled.
        scales: [K].
        option: with its value.
        what: each of them belongs to.

    Raises:
        ConfigError: one is not above 0, or not above the rounding of its mean.
    """
    if any(scale <= NOISE * abs(mean) for mean, scale in zip(means, scales, strict=True)):
        raise ConfigError(
            f"{option} is refused: scales are above 0, and above the rounding of their {what}'s mean. Write 1 for a "
            f"{what} that never varies."
        )
