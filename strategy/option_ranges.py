"""What the options of `MetaFedAvg` may be, each for itself."""

from collections.abc import Mapping
from typing import Any, get_args

from nufed.common.errors import ConfigError
from nufed.common.fixed_point import MAX_GROWTH
from nufed.strategy.results import Weighting
from nufed.strategy.weights import HIGHEST_MAX_WEIGHT

MAX_SERVER_LR = 100.0


def check_ranges(options: Mapping[str, Any]) -> None:
    """Refuse the first option that is out of range.

    Args:
        options: by the names of the arguments of `MetaFedAvg`, complete.

    Raises:
        ConfigError: with what is allowed.
    """
    weightings = get_args(Weighting)
    for name, is_allowed, allowed in (
        ("participation_fraction", lambda value: 0 < value <= 1, "above 0, at most 1"),
        ("weighting", lambda value: value in weightings, " or ".join(weightings)),
        ("server_lr", lambda value: 0 < value <= MAX_SERVER_LR, f"above 0, at most {MAX_SERVER_LR:g}"),
        ("evaluation_interval", lambda value: value >= 0, "at least 0; 0 turns it off"),
        ("num_judges", lambda value: value >= 0, "at least 0; 0 asks all"),
        ("min_clients", lambda value: value >= 1, "at least 1"),
        ("min_reply_fraction", lambda value: 0 < value <= 1, "above 0, at most 1; 1 waits for all"),
        ("reply_grace", lambda value: value >= 0, "at least 0 seconds"),
        ("max_growth", lambda value: 1 <= value <= MAX_GROWTH, f"1 to {MAX_GROWTH:g}"),
        ("max_weight", lambda value: 1 <= value <= HIGHEST_MAX_WEIGHT, f"1 to {HIGHEST_MAX_WEIGHT:g}"),
    ):
        if not is_allowed(value := options[name]):
            raise ConfigError(f"MetaFedAvg: {name}={value!r} is refused. Expected {allowed}.")
