"""Rounds with client-level differential privacy: who is drawn, what a round costs, and that it is paid for first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, DivergedError
from nufed.common.models.frozen import hash_of
from nufed.common.privacy.accounting import SampledGaussian
from nufed.common.privacy.ledger import Charge, PrivacyLedger
from nufed.common.privacy.noise import random_source
from nufed.common.privacy.rules import check_strategy_privacy
from nufed.common.privacy.terms import ClientTerms
from nufed.strategy.participation import poisson_choice
from nufed.strategy.private_mean import PrivateMean
from nufed.strategy.results import RoundResult, Spent

if TYPE_CHECKING:
    from nufed.strategy.phase import TrainingPhase


@dataclass(frozen=True)
class ClientPrivacy:
    """Client-level differential privacy of a strategy's rounds.

    Attributes:
        terms: of each round; `nufed.common.privacy.terms.client_terms` finds the noise for an ε.
        epsilon: that the rounds together do not pass; 0 for no such limit.
        ledger: file that each round is written down in before its model is returned: made, or gone on with if it is
            there. None keeps the account in memory, where a crash loses it.
        publish: names of `nufed.common.privacy.publishing.PUBLISHABLE`: of metrics, which ε does not cover, `start`
            returns averages with `training-loss` and `evaluation` alone.
    """

    terms: ClientTerms
    epsilon: float = 0.0
    ledger: Path | None = None
    publish: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrivateRound:
    """One round of a run's terms.

    Attributes:
        terms: of the run.
        round: k.
        step: what the round costs.
    """

    terms: ClientTerms
    round: int
    step: SampledGaussian

    def mean(self, sent: Mapping[str, Tensor]) -> PrivateMean:
        """Return the round's mean without replies."""
        return PrivateMean(sent, self.terms, random_source("noise", self.round))


class PrivateRounds:
    """Holds what the rounds so far have cost.

    Who may be drawn in a round are the participating clients that are connected when it begins. The terms' q and n stay
    what they are when clients come or leave: with fewer the sum has less in it and the same noise, with more each
    is drawn with the same probability, and the cap still holds. What a cap costs grows with how many may be drawn, as
    long as it is at least q times that many. Each round is charged as if all n were there, or more where more are: a
    charge by those that are would tell, in the ledger, how many were away or late.

    Attributes:
        ledger: of the run.
    """

    def __init__(self, privacy: ClientPrivacy) -> None:
        """Start, or go on with, an account.

        Raises:
            RunError: the ledger is changed, or cannot be written.
            ConfigError: it is of other terms.
        """
        self.ledger = PrivacyLedger(privacy.terms, privacy.epsilon)
        if privacy.ledger is None:
            return
        if not privacy.ledger.exists():
            self.ledger = PrivacyLedger.create(privacy.ledger, privacy.terms, privacy.epsilon)
            return
        self.ledger = PrivacyLedger.open_existing(privacy.ledger)
        if self.ledger.terms != privacy.terms:
            raise ConfigError(
                f"Expected the terms that {privacy.ledger} has, {self.ledger.terms}, got {privacy.terms}. Go on with "
                "the same ones."
            )
        if self.ledger.budget != privacy.epsilon:
            self.ledger.set_budget(privacy.epsilon)

    def begin(self, candidates: Iterable[str], round_number: int) -> tuple[tuple[str, ...], PrivateRound]:
        """Return who trains in a round, drawn in secret, and the round.

        Raises:
            BudgetSpentError: the round would take ε beyond the budget.
        """
        ids, terms = sorted(set(candidates)), self.ledger.terms
        step = terms.step(max(len(ids), terms.num_clients))
        self.ledger.check_affordable(step)
        source = random_source("participation", round_number)
        chosen = poisson_choice(ids, terms.rate, most=step.cap, source=source)
        return chosen, PrivateRound(terms, round_number, step)

    def close(self, phase: "TrainingPhase", private: PrivateRound) -> RoundResult:
        """Return the round's result, once its cost is written down.

        Raises:
            DivergedError: the noised model is not finite, which is charged too.
            RunError: the ledger cannot be written: nothing is published.
        """
        is_private = random_source().is_private
        try:
            result = phase.close()
        except DivergedError:
            self.ledger.charge(Charge(private.round, private.step, is_private=is_private))
            raise
        self.ledger.charge(Charge(private.round, private.step, hash_of(result.params), is_private))
        return replace(result, privacy=Spent(self.ledger.epsilon, self.ledger.terms.delta))


def check_private_options(privacy: ClientPrivacy, options: Mapping[str, Any]) -> None:
    """Refuse options of a strategy that contradict differential privacy.

    Args:
        privacy: of its rounds.
        options: by the names of the arguments of `MetaFedAvg`, complete.

    Raises:
        ConfigError: with the reason and what to change.
    """
    if (fraction := options["participation_fraction"]) != privacy.terms.rate:
        raise ConfigError(
            f"participation_fraction={fraction!r} contradicts the rate {privacy.terms.rate!r} of the "
            "terms of privacy. Give both the same probability."
        )
    check_strategy_privacy(
        RunConfig().updated(
            {
                "privacy.dp": "client",
                "privacy.clip": privacy.terms.clip,
                "privacy.noise": privacy.terms.noise,
                "privacy.publish": list(privacy.publish),
                "federation.weighting": options["weighting"],
                "federation.aggregation": options["aggregation"],
                "federation.min-reply-fraction": options["min_reply_fraction"],
            }
        )
    )
