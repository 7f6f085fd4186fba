"""How the clients' models become one: rules by name, of which `mean` is w_{k+1} = Σ p_i w_k^i.

The mean takes one reply at a time, and has the same bits in whatever order they come. Floating-point addition is not
associative, so a running floating-point mean depends on who answers first. Here each value is rounded once to a grid
2^-g that is fixed before the round, and added up as a 64-bit integer, which is exact and therefore associative and
commutative. See docs/decisions/0003-order-independent-mean.md for the precision.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from nufed.common.errors import DivergedError, ModelError, RunError
from nufed.common.params import Params, largest_magnitude
from nufed.common.registry import find_registered
from nufed.common.wire import check_params
from nufed.strategy.robust_options import MEAN, RobustOptions, shortfall
from nufed.strategy.robust_rules import ROBUST_RULES, combined, draw_buckets

DEFAULT_MAX_GROWTH = 1024.0
"""How far beyond max(1, the largest magnitude sent) a reply may go before it counts as diverged."""

MAX_GROWTH = 2.0**30

_SUM_BITS = 62  # of an int64, one bit short of overflow, which leaves room for the rounding of each value
_MAX_EXPONENT = 1023  # of a float64
_BLOCK = 2**17  # elements; the scratch of a block stays in the cache


def server_step(sent: Mapping[str, Tensor], mean: Params, server_lr: float) -> Params:
    """Return w_k + ε (mean - w_k), computed in float64; the mean itself, bit for bit, where ε is 1.

    ε < 1 is the server step of Reptile (Nichol, Achiam and Schulman 2018, Algorithm 2) and, as β, of pFedMe (T. Dinh,
    Tran and Nguyen 2020, Algorithm 1).

    Args:
        sent: w_k.
        mean: of the clients' models.
        server_lr: ε, above 0.

    Raises:
        DivergedError: the step leaves the range of the parameters' type.
    """
    if server_lr == 1:
        return mean
    moved: Params = {}
    for name, tensor in mean.items():
        before = sent[name].double()
        after = before + server_lr * (tensor.double() - before)
        moved[name] = (after if tensor.is_floating_point() else after.round()).to(tensor.dtype)
        if not math.isfinite(largest_magnitude(moved[name])):
            raise DivergedError(
                f"Expected a server step of size {server_lr:g} to stay finite, but array {name!r} does not. Lower "
                "federation.server-lr."
            )
    return moved


@dataclass(frozen=True)
class FixedPoint:
    """How one tensor's values are turned into integers.

    Attributes:
        limit: largest magnitude accepted, a power of two.
        bits: g; values are rounded to multiples of 2^-g (negative for values beyond the integers' range).
    """

    limit: float
    bits: int


def fixed_point_for(sent: Tensor, total_weight: int, max_growth: float = DEFAULT_MAX_GROWTH) -> FixedPoint:
    """Return the finest grid on which sums of weight up to `total_weight` stay within 62 bits.

    The limit is `max_growth`, rounded up to a power of two, times the power of two that bounds max(1, max|w_k|).

    Args:
        sent: a tensor of w_k, floating-point or integer.
        total_weight: bound of the sum of weights.
        max_growth: at least 1.

    Raises:
        DivergedError: the tensor is not finite.
        ModelError: it is complex, or an integer tensor too large to be added up.
    """
    if sent.is_complex():
        raise ModelError(f"Expected real parameters, got {sent.dtype}. Send real and imaginary parts as two arrays.")
    largest = largest_magnitude(sent)
    if not math.isfinite(largest):
        raise DivergedError(
            "Expected a finite model to start a round from, got NaN or infinite values. Lower --local-lr."
        )
    weight_bits = _ceil_log2(total_weight)
    exponent = min(_ceil_log2(max(1.0, largest)) + _ceil_log2(max_growth), _MAX_EXPONENT)
    if sent.is_floating_point():
        return FixedPoint(2.0**exponent, _SUM_BITS - exponent - weight_bits)
    exponent = min(exponent, _SUM_BITS - weight_bits)
    if largest > 2.0**exponent:
        raise ModelError(
            f"Expected integer parameters below 2^{exponent} for a mean of total weight {total_weight}, got "
            f"{largest:.0f}. Leave that counter out of the model's arrays."
        )
    return FixedPoint(2.0**exponent, 0)


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
        self._sent = sent
        self._total_weight = max(1, total_weight)
        self._grids = {name: fixed_point_for(tensor, self._total_weight, max_growth) for name, tensor in sent.items()}
        self._sums: dict[str, Tensor] = {}
        self._weight = 0
        self.limits = {name: grid.limit for name, grid in self._grids.items()}

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
        check_params(params, self._sent, self.limits)
        for name, grid in self._grids.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(self._sent[name].numel(), dtype=torch.int64)
            _add_rounded(self._sums[name], params[name].detach().reshape(-1), grid.bits, weight)
        self._weight += weight

    def shortfall(self) -> str | None:
        """Return None: any number of replies has a mean."""
        return None

    def result(self) -> Params | None:
        """Return the mean in the types of w_k, or None if nothing was folded."""
        if self._weight == 0:
            return None
        return {name: self._mean(name) for name in self._sent}

    def _mean(self, name: str) -> Tensor:
        """Return one tensor's mean: computed in float64, rounded once more to the tensor's type."""
        sent, bits = self._sent[name], self._grids[name].bits
        mean = torch.empty(sent.numel(), dtype=sent.dtype)
        for target, total in _blocks(mean, self._sums[name]):
            exact = total.double().div_(self._weight).mul_(2.0**-bits)
            target.copy_(exact if sent.is_floating_point() else exact.round_())
        return mean.reshape(sent.shape)


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


def _add_rounded(total: Tensor, values: Tensor, bits: int, weight: int) -> None:
    """Add `weight * round(values * 2^bits)` to `total` in place, block by block."""
    # Scaling by a power of two is exact in float32 and float64 alike; float16 has too small a range for it.
    dtype = values.dtype if values.dtype in (torch.float32, torch.float64) else torch.float64
    scaled = torch.empty(min(_BLOCK, values.numel()), dtype=dtype)
    integers = torch.empty(min(_BLOCK, values.numel()), dtype=torch.int64)
    for target, block in _blocks(total, values):
        if not values.is_floating_point():
            target.add_(block.long(), alpha=weight)
            continue
        size = block.numel()
        rounded = torch.mul(block.to(dtype), 2.0**bits, out=scaled[:size]).round_()
        target.add_(integers[:size].copy_(rounded), alpha=weight)


def _blocks(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield views of the same elements of two flat tensors."""
    for start in range(0, first.numel(), _BLOCK):
        yield first[start : start + _BLOCK], second[start : start + _BLOCK]


def _ceil_log2(value: float) -> int:
    """Return the smallest e with value <= 2^e, exactly."""
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else exponent
