"""A client's update u = w_k^i - w_k, cut to the length C and made integers that private sums consist of.

All floating-point arrays count together in the length, which is taken in float64. The length of the integers never
exceeds C, whatever the arithmetic rounds: what is scaled goes to a length below C by 2^-32 of it, which is more than
the errors of a length and of a product come to, and every value is rounded toward zero.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from nufed.common.errors import ConfigError, DivergedError
from nufed.common.fixed_point import Sums, zero_sums
from nufed.common.model_arrays import check_params
from nufed.common.params import Params, largest_magnitude
from nufed.common.privacy.noise import grid_bits

_SHORTER = 1 - 2.0**-32
_LARGEST = 2.0**1000  # of a parameter; differences and lengths are then finite
_BLOCK = 2**17  # elements; float64 has the sum of so many squares to 2^-36 of it, in any order


class ClippedUpdateEncoding:
    """Encodes clipped updates, for w_k + Σ u_i / (q n); an `Encoding` of `nufed.common.fixed_point`.

    Integer arrays (counters) are in no update: they keep the values of w_k, because noise covers none of them.

    Attributes:
        limits: largest magnitude accepted, by name: what is large is clipped, and need not be refused.
        bits: g; the integers count multiples of 2^-g.
    """

    def __init__(self, sent: Mapping[str, Tensor], clip: float, denominator: float = 1.0) -> None:
        """Fix the grid of a round.

        Args:
            sent: w_k; not changed.
            clip: C, from 1e-9 to 1e9.
            denominator: q n, the expected number of clients in a round; of no matter to clients, which only add.

        Raises:
            ConfigError: C or the denominator is out of range.
        """
        if not 0 < denominator < math.inf:
            raise ConfigError(f"Expected a positive number of clients in a round, got {denominator!r}.")
        self._sent, self._clip, self._denominator = sent, clip, denominator
        self.bits = grid_bits(clip)
        self.limits = dict.fromkeys(sent, _LARGEST)

    def add(self, sums: Sums, params: Mapping[str, Tensor], weight: int = 1) -> None:  # noqa: ARG002
        """Check a model, and add the integers of its clipped update in place; it counts once, whatever `weight` is.

        Raises:
            WireError: it is no finite model of the names, shapes and types sent; `sums` are then as they were.
        """
        check_params(params, self._sent, self.limits)
        length, factor = update_length(self._sent, params), 2.0**self.bits
        if length > self._clip * _SHORTER:
            factor *= self._clip / length * _SHORTER
        if not sums:
            sums.update(zero_sums({name: before.numel() for name, before in _floating(self._sent)}))
        integers = np.empty(_BLOCK, np.int64)
        for name, before in _floating(self._sent):
            total, start = sums[name].numpy(), 0
            for difference in _differences(params[name], before):
                rounded = integers[: difference.numel()]
                np.copyto(rounded, difference.mul_(factor).trunc_().numpy(), casting="unsafe")
                target = total[start : start + difference.numel()]
                target += rounded
                start += difference.numel()

    def mean(self, sums: Sums, weight: int = 1) -> Params:  # noqa: ARG002
        """Return w_k + sum / (q n) in the types of w_k, however many clients have answered (`weight`).

        Raises:
            DivergedError: it leaves the range of a type.
        """
        step, result = 2.0**-self.bits / self._denominator, dict(self._sent)
        for name, before in _floating(self._sent):
            flat, after = before.detach().reshape(-1), torch.empty(before.numel(), dtype=before.dtype)
            for start in range(0, flat.numel(), _BLOCK):
                place = slice(start, start + _BLOCK)
                after[place] = flat[place].double() + sums[name][place].double() * step
            if not math.isfinite(largest_magnitude(after)):
                raise DivergedError(
                    f"Expected a model within the range of {before.dtype}, but noise and updates take array {name!r} "
                    "out of it. Lower privacy.clip, or ask more clients in a round."
                )
            result[name] = after.reshape(before.shape)
        return result


def update_length(sent: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> float:
    """Return the length of w_k^i - w_k over the floating-point arrays together: clipping lengths are chosen by it."""
    return math.hypot(
        *(_length(each) for name, before in _floating(sent) for each in _differences(params[name], before))
    )


def _floating(sent: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in sent.items() if tensor.is_floating_point())


def _differences(after: Tensor, before: Tensor) -> Iterator[Tensor]:
    """Yield after - before in float64, block by block."""
    after, before = after.detach().reshape(-1), before.detach().reshape(-1)
    for start in range(0, before.numel(), _BLOCK):
        yield after[start : start + _BLOCK].double() - before[start : start + _BLOCK].double()


def _length(block: Tensor) -> float:
    """Return a block's length; scaled by a power of two on the way, so that no square overflows or is lost."""
    largest = largest_magnitude(block)
    if largest == 0:
        return 0.0
    exponent = max(math.frexp(largest)[1], -1000)
    return math.ldexp(math.sqrt(float((block * 2.0**-exponent).square_().sum())), exponent)
