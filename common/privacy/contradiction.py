"""One row of the table of contradictions in options of privacy, and what rows ask of a run's options."""

from collections.abc import Callable
from dataclasses import dataclass

from nufed.common.config import RunConfig
from nufed.common.config.privacy import PrivacyConfig
from nufed.common.privacy.publishing import published_names


@dataclass(frozen=True)
class Contradiction:
    """A combination of options that is refused.

    Attributes:
        id: its name in the docs and tests.
        applies: whether a run's options hold it.
        reason: what contradicts what, and why; `{federation.weighting}` stands for an option's value.
        remedy: what to change.
        of_strategy: whether `applies` reads nothing but the options of privacy and federation, so that `MetaFedAvg`
            refuses it too.
    """

    id: str
    applies: Callable[[RunConfig], bool]
    reason: str
    remedy: str
    of_strategy: bool = False

    def message(self, config: RunConfig) -> str:
        """Return what a user is told."""
        return f"{self.reason.format(**dict(config))}. {self.remedy}."


def has_dp(config: RunConfig) -> bool:
    """Return whether a run has differential privacy, of clients or of records."""
    return config.privacy.dp != "none"


def is_secure(config: RunConfig) -> bool:
    """Return whether the server is to learn sums of models alone."""
    return config.privacy.secure_aggregation


def publishes(config: RunConfig, *names: str) -> bool:
    """Return whether all of these are published by name although ε does not cover them."""
    return set(names) <= set(published_names(config))


def differs(config: RunConfig, *names: str) -> bool:
    """Return whether one of the section's options is not at its default."""
    fields = PrivacyConfig.model_fields
    return any(getattr(config.privacy, name) != fields[name].default for name in names)


def ends_early(config: RunConfig) -> bool:
    """Return whether over-selection may end a round with fewer of those asked than secure aggregation needs."""
    over = config.federation.over_selection
    return over > 0 and config.federation.min_reply_fraction < config.privacy.secure_threshold * (1 + over)


def scales_run_wide(config: RunConfig) -> bool:
    """Return whether values are scaled by all clients' data."""
    data = config.data
    return data.input_scale == "run" or (data.target_scale == "run" and not data.target_means)


def is_record(config: RunConfig) -> bool:
    """Return whether records are protected."""
    return config.privacy.dp == "record"


def scales_own_targets(config: RunConfig) -> bool:
    """Return whether clients scale their targets by their own data."""
    data = config.data
    of_its_own = data.target_scale == "auto" and data.source == "private" and data.task == "regression"
    return data.target_scale == "local" or (of_its_own and not data.target_means)
