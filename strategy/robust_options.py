"""What a robust rule is told, and which of it goes together: what contradicts what is refused before a round is run."""

from dataclasses import dataclass

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.registry import find_registered
from nufed.strategy.participation import num_chosen
from nufed.strategy.robust_rules import ROBUST_RULES

MEAN = "mean"


@dataclass(frozen=True)
class RobustOptions:
    """How many replies of a round may be anything, and how replies are averaged before the rule sees them.

    Attributes:
        num_attackers: b; 0 where the rule need not know.
        bucket_size: s, replies averaged with one another first; 1 averages none.
        seed: of the buckets.
        round: k, of the buckets too.
    """

    num_attackers: int = 0
    bucket_size: int = 1
    seed: int = 0
    round: int = 0


def check_rule(name: str, weighting: str, options: RobustOptions) -> None:
    """Refuse a rule and options of it that have no meaning together.

    Raises:
        ConfigError: with what to change.
    """
    find_registered(
        dict.fromkeys([MEAN, *ROBUST_RULES]), name, what="aggregation rule", option="federation.aggregation"
    )
    if options.num_attackers < 0 or options.bucket_size < 1:
        raise ConfigError(
            f"num-attackers={options.num_attackers} and bucket-size={options.bucket_size} are refused. Expected at "
            "least 0 attackers and at least 1 reply in a bucket."
        )
    if name == MEAN:
        if options.num_attackers:
            raise ConfigError(
                f"num-attackers={options.num_attackers} contradicts aggregation=mean, which one attacker can put "
                f"anywhere. Choose one of {', '.join(ROBUST_RULES)}, or leave num-attackers at 0."
            )
        if options.bucket_size > 1:
            raise ConfigError(
                f"bucket-size={options.bucket_size} contradicts aggregation=mean, which is the same mean without "
                "buckets. Leave bucket-size at 1, or choose a robust rule."
            )
        return
    if weighting != "uniform":
        raise ConfigError(
            f"weighting={weighting} contradicts aggregation={name}, which counts clients: whoever claims many examples "
            "would count as several. Set weighting to uniform, or aggregation to mean."
        )
    if ROBUST_RULES[name].needs_attackers and options.num_attackers == 0:
        raise ConfigError(
            f"aggregation={name} needs num-attackers, how many clients of a round may send anything. Set it "
            "to at least 1."
        )


def shortfall(name: str, num_replies: int, options: RobustOptions) -> str | None:
    """Return why a rule cannot be applied to so many replies; None if it can."""
    if name == MEAN:
        return None
    least = ROBUST_RULES[name].least(options.num_attackers)
    vectors = -(-num_replies // options.bucket_size)
    if vectors >= least:
        return None
    needed, buckets = (least - 1) * options.bucket_size + 1, ""
    if options.bucket_size > 1:
        buckets = f" in buckets of {options.bucket_size}"
    return (
        f"aggregation={name} with num-attackers={options.num_attackers} needs {needed} replies{buckets}, "
        f"and there are {num_replies}"
    )


def check_round_size(name: str, num_asked: int, options: RobustOptions) -> None:
    """Refuse a rule that rounds of so many clients can never satisfy.

    Raises:
        ConfigError: with what to change.
    """
    if reason := shortfall(name, num_asked, options):
        raise ConfigError(
            f"Expected rounds large enough for the rule, but {reason} in a round. Ask more clients in a round "
            "(participation-fraction), wait for more of them (min-clients), or lower num-attackers or bucket-size."
        )


def check_config(config: RunConfig) -> None:
    """Refuse a run whose rule of aggregation cannot work, before it starts.

    Raises:
        ConfigError: with what to change.
    """
    federation = config.federation
    options = RobustOptions(federation.num_attackers, federation.bucket_size)
    check_rule(federation.aggregation, federation.weighting, options)
    if federation.training == "federated":
        asked = num_chosen(config.data.num_clients, federation.participation_fraction)
        if federation.mode == "buffered":
            asked = min(config.data.num_clients, federation.buffer_size)
        check_round_size(federation.aggregation, asked, options)
