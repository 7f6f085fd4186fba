"""Models as 64-bit integers, whose sums are exact, and so the same in whatever order they are taken.

Floating-point addition is not associative: a running floating-point mean depends on who answers first. Here each value
is rounded once to a grid 2^-g that is fixed before the round, and added up as an integer. See
docs/decisions/0003-order-independent-mean.md for the precision. The server does it to each reply; with secure
aggregation each client does it to its own model, and the server sees no more than the sum.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nufed.common.errors import DivergedError, ModelError
from nufed.common.params import Params, largest_magnitude
from nufed.common.wire import check_params

DEFAULT_MAX_GROWTH = 1024.0
"""How far beyond max(1, the largest magnitude sent) a reply may go before it counts as diverged."""

MAX_GROWTH = 2.0**30

_SUM_BITS = 62  # of an int64, one bit short of overflow, which leaves room for the rounding of each value
_MAX_EXPONENT = 1023  # of a float64
_BLOCK = 2**17  # elements; the scratch of a block stays in the cache


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


Sums = dict[str, Tensor]
"""Flat int64 tensors by the name of the array, of as many elements."""


class Encoding(Protocol):
    """Turns a round's models into integers that can be added up, and their sum into one model.

    Attributes:
        limits: largest magnitude accepted, by name.
    """

    limits: dict[str, float]

    def check(self, params: Mapping[str, Tensor]) -> None:
        """Refuse what is not a finite model of the names, shapes and types sent, within the limits.

        Raises:
            WireError: with the first difference.
        """

    def add(self, sums: Sums, params: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add `weight` times the integers of a model that was checked to `sums`, which may be empty, in place."""

    def mean(self, sums: Sums, weight: int) -> Params:
        """Return the model that a sum of total weight `weight` makes, in the types of w_k."""


class ModelEncoding:
    """Encodes models themselves, for the mean Σ p_i w_k^i.

    Attributes:
        limits: largest magnitude accepted, by name.
    """

    def __init__(self, sent: Mapping[str, Tensor], total_weight: int, max_growth: float = DEFAULT_MAX_GROWTH) -> None:
        """Fix the grids of a round.

        Args:
            sent: w_k, which fixes names, shapes, types and grids; not changed.
            total_weight: bound of the sum of weights, at least 1.
            max_growth: see `fixed_point_for`.

        Raises:
            ModelError: w_k cannot be averaged.
        """
        self._sent = sent
        self._grids = {name: fixed_point_for(tensor, total_weight, max_growth) for name, tensor in sent.items()}
        self.limits = {name: grid.limit for name, grid in self._grids.items()}

    def check(self, params: Mapping[str, Tensor]) -> None:
        """Refuse what is not a model; see `Encoding.check`."""
        check_params(params, self._sent, self.limits)

    def add(self, sums: Sums, params: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add a model that was checked; see `Encoding.add`."""
        for name, grid in self._grids.items():
            if name not in sums:
                sums[name] = torch.zeros(self._sent[name].numel(), dtype=torch.int64)
            _add_rounded(sums[name], params[name].detach().reshape(-1), grid.bits, weight)

    def mean(self, sums: Sums, weight: int) -> Params:
        """Return the mean, computed in float64 and rounded once more to each tensor's type."""
        return {name: self._mean(name, sums[name], weight) for name in self._sent}

    def _mean(self, name: str, sums: Tensor, weight: int) -> Tensor:
        sent, bits = self._sent[name], self._grids[name].bits
        mean = torch.empty(sent.numel(), dtype=sent.dtype)
        for target, total in _blocks(mean, sums):
            exact = total.double().div_(weight).mul_(2.0**-bits)
            target.copy_(exact if sent.is_floating_point() else exact.round_())
        return mean.reshape(sent.shape)


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
