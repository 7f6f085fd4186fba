"""What a run shares although ε does not cover it: nothing, unless `privacy.publish` names it.

Differential privacy covers the sequence of models, and these alone. Losses, numbers of examples, evaluations, and who
took part are computed from clients' data without noise, so that under `privacy.dp` they are withheld where they are
made: a client does not send what it need not, and the server makes no record and no event that holds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.config.lists import read_names
from nufed.common.errors import ConfigError, NufedError, nearest_match_hint

PUBLISHABLE = {
    "evaluation": "evaluations: means over clients of losses and metrics before and after fine-tuning",
    "client-curves": "evaluations of single clients (simulations alone)",
    "participants": "who took part: names and numbers of the clients asked in a round, and how each answered (always "
    "shown with --dp record, whose protected records do not decide it)",
    "examples": "numbers of examples",
    "training-loss": "losses in training",
    "statistics": "means and scales of inputs and targets, computed from all clients' data",
}
"""Name in `privacy.publish` -> what it shares."""

IN_THE_LOG = "the log of the server's process says more"
"""In place of reasons that may tell of a client's data."""


@dataclass(frozen=True)
class Publication:
    """What of a run is shown; without differential privacy everything is."""

    evaluation: bool = True
    client_curves: bool = True
    participants: bool = True
    examples: bool = True
    training_loss: bool = True
    statistics: bool = True

    @classmethod
    def of(cls, config: RunConfig) -> "Publication":
        """Return what a run's options let be shown.

        Raises:
            ConfigError: `privacy.publish` names what nothing is known of.
        """
        names = published_names(config)
        if config.privacy.dp == "none":
            return cls()
        shown = {each.name: each.name.replace("_", "-") in names for each in fields(cls)}
        if config.privacy.dp == "record":  # who is asked depends on no record
            shown["participants"] = True
        return cls(**shown)

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of what is shown, as `privacy.publish` has them."""
        return tuple(name for name in PUBLISHABLE if getattr(self, name.replace("-", "_")))

    @property
    def withheld(self) -> tuple[str, ...]:
        """Names of what is not."""
        return tuple(name for name in PUBLISHABLE if name not in self.shown)


def withheld_by(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return names of what a run of these flat options withholds; none where that is not known, as in older runs."""
    if options.get("privacy.dp", "none") == "none":
        return ()
    try:
        named = {name: options[name] for name in ("privacy.dp", "privacy.publish")}
        return Publication.of(RunConfig().updated(named)).withheld
    except (NufedError, KeyError):  # of a later version
        return ()


def published_names(config: RunConfig) -> tuple[str, ...]:
    """Return what `privacy.publish` names.

    Raises:
        ConfigError: a name is unknown.
    """
    names = read_names(config.privacy.publish)
    for name in names:
        if name not in PUBLISHABLE:
            raise ConfigError(
                f"privacy.publish={config.privacy.publish!r} names {name!r}, which is nothing that a run publishes."
                f"{nearest_match_hint(name, PUBLISHABLE)}"
            )
    return names
