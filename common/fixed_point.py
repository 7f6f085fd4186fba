"""Models as 64-bit integers, whose sums are exact, and so the same in whatever order they are taken.

Floating-point addition is not associative: a running floating-point mean depends on who answers first. Here each value
is rounded once to a grid 2^-g that is fixed before the round, and added up as an integer. See
docs/decisions/0003-order-independent-mean.md for the precision. The server does it to each reply; with secure
aggregation each client does it to its own model, and the server sees no more than the sum.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nufed.common.errors import DivergedError, ModelError
from nufed.common.model_arrays import check_layout, check_values
from nufed.common.params import Params, largest_magnitude

DEFAULT_MAX_GROWTH = 1024.0
"""How far beyond max(1, the largest magnitude sent) a reply may go before it counts as diverged."""

MAX_GROWTH = 2.0**30

_SUM_BITS = 62  # of an int64, one bit short of overflow, which leaves room for the rounding of each value
_MAX_EXPONENT = 1023  # of a float64
_BLOCK = 2**15  # elements; a block, its sums and 256 KiB of scratch stay in the cache of one core

_MAGIC_BITS = 51
_MAGIC = torch.tensor(1.5 * 2.0**52, dtype=torch.float64)
"""Added to a float64 of at most 2^51, it leaves the value, rounded half to even, in the low bits of the sum."""

_OFFSET = int(_MAGIC.view(torch.int64))
"""What the bits of that sum, as an integer, have beyond the value."""


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


def zero_sums(sizes: Mapping[str, int]) -> Sums:
    """Return sums of nothing, in one piece of memory.

    NumPy asks the system for large pages there (Linux), with which adding to 80 MB takes a fifth less time.
    """
    memory = torch.from_numpy(np.zeros(sum(sizes.values()), np.int64))
    return dict(zip(sizes, torch.split(memory, list(sizes.values())), strict=True))


class Encoding(Protocol):
    """Turns a round's models into integers that can be added up, and their sum into one model.

    Attributes:
        limits: largest magnitude accepted, by name.
    """

    limits: dict[str, float]

    def add(self, sums: Sums, params: Mapping[str, Tensor], weight: int = 1) -> None:
        """Check a model, and add `weight` times its integers to `sums`, which may be empty, in place.

        Raises:
            WireError: it is no finite model of the names, shapes and types sent, or beyond the limits; `sums` are then
                as they were.
        """

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

    def add(self, sums: Sums, params: Mapping[str, Tensor], weight: int = 1) -> None:
        """Check and add a model; see `Encoding.add`. Sums of weight W are W * 0x4338000000000000 above the integers.

        Every element is read once: a block is checked and added while it is in the cache. Integers are exact, so what
        was added of a model before an element that is refused is taken away again without a trace.
        """
        check_layout(params, self._sent)
        if not sums:
            sums.update(zero_sums({name: tensor.numel() for name, tensor in self._sent.items()}))
        scratch = torch.empty(_BLOCK, dtype=torch.float64)
        done: list[tuple[str, Tensor]] = []
        for name, grid in self._grids.items():
            values = params[name].detach().reshape(-1)
            added = _add_rounded(sums[name], values, grid, weight, scratch)
            done.append((name, values[:added]))
            if added < values.numel():
                for before, part in done:
                    _add_rounded(sums[before], part, self._grids[before], -weight, scratch)
                check_values(name, values, grid.limit)

    def mean(self, sums: Sums, weight: int) -> Params:
        """Return the mean, computed in float64 and rounded once more to each tensor's type."""
        return {name: self._mean(name, sums[name], weight) for name in self._sent}

    def _mean(self, name: str, sums: Tensor, weight: int) -> Tensor:
        sent, bits = self._sent[name], self._grids[name].bits
        mean = torch.empty(sent.numel(), dtype=sent.dtype)
        offset = _signed(weight * _OFFSET)
        for start in range(0, sums.numel(), _BLOCK):
            place = slice(start, start + _BLOCK)
            if sent.is_floating_point():
                mean[place].copy_((sums[place] - offset).double().div_(weight).mul_(2.0**-bits))
            else:
                mean[place].copy_(sums[place].double().div_(weight).mul_(2.0**-bits).round_())
        return mean.reshape(sent.shape)


def _add_rounded(total: Tensor, values: Tensor, grid: FixedPoint, weight: int, scratch: Tensor) -> int:
    """Add `weight * round(values * 2^bits)` to `total` in place, up to the first block that is to be refused.

    Floating-point values are added with the offset of `_MAGIC`, as many times as they weigh.

    Returns:
        How many elements were added: all, unless one is not finite or beyond the limit.
    """
    if not values.is_floating_point():
        if largest_magnitude(values) > grid.limit:
            return 0
        for target, part in zip(torch.split(total, _BLOCK), torch.split(values, _BLOCK), strict=True):
            target.add_(part.long(), alpha=weight)
        return values.numel()
    start, sums, integers = 0, total.numpy(), scratch.view(torch.int64).numpy()
    small = 2.0 ** min(_MAGIC_BITS - grid.bits, _MAX_EXPONENT)
    certain = min(grid.limit, small) / 2
    for block in torch.split(values, _BLOCK):
        size = block.numel()
        scaled = scratch if size == _BLOCK else scratch[:size]
        scaled.copy_(block)
        # Four times the sum of squares bounds the square of the largest, whatever it is rounded by; it is a pass of
        # half the time of looking for the largest itself.
        largest = 0.0
        probe = block if block.dtype == torch.float32 else scaled
        if not float(torch.dot(probe, probe)) < certain * certain:
            largest = largest_magnitude(block)
            if not largest <= grid.limit:  # NaN neither
                return start
        rounded = integers[:size]
        if largest <= small:
            torch.add(_MAGIC, scaled, alpha=2.0**grid.bits, out=scaled)
        else:
            np.copyto(rounded, scaled.mul_(2.0**grid.bits).round_().numpy(), casting="unsafe")
            rounded += _OFFSET
        if weight != 1:
            rounded *= weight
        place = sums[start : start + size]
        place += rounded  # not sums[...] +=, which writes the block a second time
        start += size
    return start


def _signed(value: int) -> int:
    """Return the number of 64 bits with a sign that is the value modulo 2^64."""
    return (value + 2**63) % 2**64 - 2**63


def _ceil_log2(value: float) -> int:
    """Return the smallest e with value <= 2^e, exactly."""
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else exponent
