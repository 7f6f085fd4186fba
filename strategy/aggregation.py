"""How the clients' models become one: rules by name, of which `mean` is w_{k+1} = Σ p_i w_k^i.

The mean takes one reply at a time, and has the same bits in whatever order they come: it adds up integers
(nufed.common.fixed_point).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from torch import Tensor

from nufed.common.errors import RunError
from nufed.common.fixed_point import DEFAULT_MAX_GROWTH, ModelEncoding, Sums, fixed_point_for
from nufed.common.model_arrays import check_params
from nufed.common.params import Params
from nufed.common.registry import find_registered
from nufed.strategy.robust_options import MEAN, RobustOptions, shortfall
from nufed.strategy.robust_rules import ROBUST_RULES, combined, draw_buckets


class RunningMean:
    """Holds the sum of the replies folded so far: 8 bytes per parameter, whatever the number of clients.

    Attributes:
        limits: largest magnitude accepted, by name.
    """

    def __init__(self, sent: Mapping[str, Tensor], total_weight: int, max_growth: float = DEFAULT_MAX_GROWTH) -> None:
        """Start an empty mean.

        Args:
            sent: w_k, which fixes names, shapes, types and grids; not changed.
            total_weight: bound of the sum of weights, at least 1.
            max_growth: see `fixed_point_for`.

        Raises:
            ModelError: w_k cannot be averaged.
        """
        self._total_weight = max(1, total_weight)
        self._encoding = ModelEncoding(sent, self._total_weight, max_growth)
        self._sums: Sums = {}
        self._weight = 0
        self.limits = self._encoding.limits

    @property
    def weight(self) -> int:
        """The sum of the weights folded so far."""
        return self._weight

    def fold(self, params: Mapping[str, Tensor], weight: int = 1, client_id: str = "") -> None:  # noqa: ARG002
        """Add `weight` times a reply; a reply that is refused leaves the mean as it was.

        Args:
            params: w_k^i; not changed.
            weight: at least 1; the sum over replies is at most the bound given at the start.
            client_id: whose it is, which does not matter to a mean.

        Raises:
            WireError: the reply is not a finite model of the same names, shapes and types within the limits.
            RunError: the weight is out of range.
        """
        if not 1 <= weight <= self._total_weight - self._weight:
            raise RunError(
                f"Expected a weight from 1 to {self._total_weight - self._weight}, got {weight!r}. "
                f"Start the mean with the sum of all weights as its bound."
            )
        self._encoding.add(self._sums, params, weight)
        self._weight += weight

    def add_sums(self, sums: Sums, weight: int) -> None:
        """Take the sum of replies that their senders encoded themselves; each was checked by its sender alone.

        Args:
            sums: integers of the encoding; not changed, and kept.
            weight: the sum of the weights in them.

        Raises:
            RunError: the weight is out of range, or something was folded before.
        """
        if self._weight or not 1 <= weight <= self._total_weight:
            raise RunError(
                f"Expected one sum of total weight 1 to {self._total_weight}, got {weight!r} after {self._weight}. "
                "Fold either single replies or their sum."
            )
        self._sums, self._weight = sums, weight

    def shortfall(self) -> str | None:
        """Return None: any number of replies has a mean."""
        return None

    def result(self) -> Params | None:
        """Return the mean in the types of w_k, or None if nothing was folded."""
        return self._encoding.mean(self._sums, self._weight) if self._weight else None


class HeldReplies:
    """Holds a round's replies, as many models as clients are asked, until a robust rule makes one model of them.

    The rule then takes n times 256 KiB more, whatever the size of the model, and the model that it makes.

    Attributes:
        limits: largest magnitude accepted, by name.
    """

    def __init__(
        self,
        sent: Mapping[str, Tensor],
        total_weight: int,  # noqa: ARG002 - of a rule; each client counts once
        max_growth: float = DEFAULT_MAX_GROWTH,
        options: RobustOptions = RobustOptions(),  # noqa: B008 - frozen
        *,
        rule: str,
    ) -> None:
        """Start a round; `rule` is a key of `ROBUST_RULES`.

        Raises:
            ModelError: w_k has parameters that are not real numbers.
        """
        self._sent, self._rule, self._options = dict(sent), rule, options
        self._replies: dict[str, Params] = {}
        self.limits = {name: fixed_point_for(tensor, 1, max_growth).limit for name, tensor in sent.items()}

    def fold(self, params: Mapping[str, Tensor], weight: int = 1, client_id: str = "") -> None:  # noqa: ARG002
        """Keep a reply; one that is refused leaves no trace.

        Args:
            params: w_k^i; kept, so it must not be changed afterwards.
            weight: of a rule; each client counts once.
            client_id: whose it is, by which replies are ordered.

        Raises:
            WireError: the reply is not a finite model of the same names, shapes and types within the limits.
            RunError: this client has replied already.
        """
        if client_id in self._replies:
            raise RunError(f"Expected one reply of each client, got a second one of {client_id!r}. Name each client.")
        check_params(params, self._sent, self.limits)
        self._replies[client_id] = {name: params[name].detach() for name in self._sent}

    def shortfall(self) -> str | None:
        """Return why the rule cannot be applied to the replies there are; None if it can, or there are none."""
        return shortfall(self._rule, len(self._replies), self._options) if self._replies else None

    def result(self) -> Params | None:
        """Return what the rule makes of the replies; None where there are none, or fewer than it is defined on.

        Raises:
            DivergedError: updates are too long.
        """
        if not self._replies or self.shortfall():
            return None
        replies = [self._replies[client_id] for client_id in sorted(self._replies)]
        options = self._options
        buckets = draw_buckets(len(replies), options.bucket_size, options.seed, options.round)
        return combined(ROBUST_RULES[self._rule], self._sent, replies, options.num_attackers, buckets)


class Aggregation(Protocol):
    """Makes one model of a round's replies, which come one by one in any order.

    Attributes:
        limits: largest magnitude accepted, by name.
    """

    limits: dict[str, float]

    def fold(self, params: Mapping[str, Tensor], weight: int = 1, client_id: str = "") -> None:
        """Take a reply; see `RunningMean.fold`, whose checks and errors every rule shares."""

    def shortfall(self) -> str | None:
        """Return why there are too few replies for a model; None if there are enough, or none at all."""

    def result(self) -> Params | None:
        """Return the model, the same bits in whatever order replies came; None if there was no reply."""


class SumAggregation(Aggregation, Protocol):
    """Makes a model of a sum that clients' masks have hidden the terms of."""

    def add_sums(self, sums: Sums, weight: int, /) -> None:
        """Take the sum of replies that their senders encoded; see `RunningMean.add_sums`."""


def _running_mean(
    sent: Mapping[str, Tensor], total_weight: int, max_growth: float, _options: RobustOptions
) -> RunningMean:
    return RunningMean(sent, total_weight, max_growth)


AggregationRule = Callable[[Mapping[str, Tensor], int, float, RobustOptions], Aggregation]
"""(w_k, bound of the sum of weights, max_growth, options) -> an aggregation without replies, for one round."""

AGGREGATION_RULES: dict[str, AggregationRule] = {
    MEAN: _running_mean,
    **{name: partial(HeldReplies, rule=name) for name in ROBUST_RULES},
}


def find_aggregation(name: str) -> AggregationRule:
    """Return the registered rule.

    Raises:
        ConfigError: the name is unknown.
    """
    return find_registered(AGGREGATION_RULES, name, what="aggregation rule", option="federation.aggregation")
