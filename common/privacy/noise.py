"""Gaussian noise for differential privacy: ⌊N(0, σ²)⌋ as integers, drawn exactly from the operating system's generator.

Noise from floating-point arithmetic has holes and lumps in its last bits, from which what it was added to can be told
(Mironov 2012). Here noise meets data on a grid, as integers, and its distribution there is that of a real Gaussian of
which the integer part is taken. For an integer sum x, x + ⌊N⌋ = ⌊x + N⌋ is computed from the Gaussian mechanism's
output alone, so whatever is proved of the Gaussian mechanism, sampling included, holds of it.

The sampler covers the half curve f(v) = exp(-v²/2σ²) by boxes of one area, draws a box, a point in it and a sign, and
keeps the point if it lies below the curve (rejection from a table, after Marsaglia and Tsang 2000). Most boxes lie
below it as a whole. Elsewhere float64 decides, with a bound of its error, and within that bound decimal arithmetic on
as many random bits as it takes (as Karney 2016 does bit by bit). What is not exact: deviates beyond 13 σ, which have a
probability below 2^-125, are not drawn.
"""

import hashlib
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nufed.common.errors import ConfigError, RunError
from nufed.common.params import Params, largest_magnitude
from nufed.common.privacy.terms import LEAST_CLIP, MOST_CLIP
from nufed.common.settings import process_settings

MAX_STD = 2.0**48
"""What σ stays below, in steps of the grid."""

_CLIP_BITS = 28  # of C; so that z C is a σ that can be drawn for each z up to 2^20, which is beyond 10^6

TEST_KEY_WARNING = (
    "NOT PRIVATE: NUFED_TEST_PRIVACY_KEY is set, so noise and participation can be computed by whoever knows it. "
    "It is for tests; unset it."
)

_FINE_BITS = 48  # deviates are drawn in units of σ 2^-48 to 2^-47, and then cut to the grid's
_STRIP_BITS = 44  # a strip is 1/16 to 1/8 of σ wide
_REACH = 13.0  # of the table, in σ
_LAYERS = 256
_HEIGHT_BITS = 52
_MARGIN = 2.0**-40  # of f(v): float64's error is below 2^-41 (8 roundings of exponents up to 100, and a unit of v)
_BLOCK = 2**16

_Integers = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_log = logging.getLogger(__name__)
_told: set[str] = set()


class RandomSource:
    """Draws what differential privacy needs to be secret: from the operating system, or under a test key from it.

    Under a test key it holds how much was drawn, and nothing otherwise.

    Attributes:
        is_private: whether nobody can compute what is drawn.
    """

    def __init__(self, test_key: str = "", *purpose: str | int) -> None:
        """Draw from the operating system's generator, or from a stream that `test_key` and `purpose` determine."""
        self.is_private = not test_key
        self._key = hashlib.sha256("/".join([test_key, *map(str, purpose)]).encode()).digest()
        self._drawn = 0

    def words(self, count: int) -> _Words:
        """Return [count] uniform 64-bit words."""
        if self.is_private:
            content = os.urandom(8 * count)
        else:
            self._drawn += 1
            content = hashlib.shake_256(self._key + self._drawn.to_bytes(8, "big")).digest(8 * count)
        return np.frombuffer(content, dtype=np.uint64)

    def bernoulli(self, probability: float, count: int) -> npt.NDArray[np.bool_]:
        """Return [count] draws that are true with a probability, rounded down to a multiple of 2^-64."""
        if probability >= 1:
            return np.ones(count, dtype=np.bool_)
        return self.words(count) < np.uint64(int(probability * 2.0**64))

    def subset(self, count: int, size: int) -> list[int]:
        """Return `size` of the numbers below `count`, chosen uniformly, ascending."""
        # The order of independent keys of 128 bits; two are equal with a probability below count² 2^-128.
        keys = self.words(2 * count).reshape(count, 2).tolist()
        return sorted(sorted(range(count), key=lambda number: tuple(keys[number]))[:size])

    def gaussian(self, count: int, std: float) -> _Integers:
        """Return [count] draws of ⌊N(0, std²)⌋.

        Args:
            count: how many.
            std: in steps of the grid, above 0, below `MAX_STD`.

        Raises:
            RunError: the standard deviation is out of range.
        """
        if not 0 < std < MAX_STD:
            raise RunError(f"Expected noise of 0 to 2^48 steps of the grid, got {std!r}. Choose a coarser grid.")
        return np.concatenate(
            [_block(self, min(_BLOCK, count - start), std) for start in range(0, count, _BLOCK)] or [_EMPTY]
        )

    def add_gaussian_(self, integers: Tensor, std: float) -> None:
        """Add ⌊N(0, std²)⌋ to each element of a flat int64 tensor on the CPU, in place; see `gaussian`.

        Raises:
            RunError: the standard deviation is out of range.
        """
        for start in range(0, integers.numel(), _BLOCK):
            block = integers[start : start + _BLOCK]
            block.add_(torch.from_numpy(self.gaussian(block.numel(), std)))


def random_source(*purpose: str | int) -> RandomSource:
    """Return the operating system's generator; under NUFED_TEST_PRIVACY_KEY a stream of its own for each purpose.

    The latter is said loudly, once in a process.
    """
    key = process_settings().test_privacy_key
    if key and key not in _told:
        _told.add(key)
        _log.warning(TEST_KEY_WARNING)
    return RandomSource(key, *purpose)


def noised_sum(sums: Mapping[str, Tensor], clip: float, noise: float, source: RandomSource) -> Params:
    """Return a sum of clipped terms plus N(0, (zC)²) in each coordinate, on a grid of 2^-28 to 2^-27 of C.

    Rounding to the grid may bring two sums that differ by one term of length C further apart, by √P steps at most for
    P coordinates; the noise is so much larger.

    Args:
        sums: of terms whose length over all tensors together is at most C; floating-point, not changed.
        clip: C, above 0.
        noise: z, above 0.
        source: of the noise.

    Raises:
        RunError: a sum is not finite, or beyond 2^34 C.
    """
    bits = grid_bits(clip)
    steps = noise * (clip * 2.0**bits + math.sqrt(sum(tensor.numel() for tensor in sums.values())))
    result: Params = {}
    for name, tensor in sums.items():
        scaled = tensor.detach().double().mul(2.0**bits).floor().flatten().cpu()
        if not largest_magnitude(scaled) < _MOST:  # NaN neither
            raise RunError(
                f"Expected a sum of terms clipped to {clip:g}, got numbers beyond 2^34 of that in {name!r}, or none at "
                "all. Report this defect."
            )
        integers = scaled.long()
        source.add_gaussian_(integers, steps)
        result[name] = integers.double().mul_(2.0**-bits).reshape(tensor.shape).to(tensor)
    return result


def grid_bits(clip: float) -> int:
    """Return g of the grid 2^-g on which a clipping length C has more than 2^27 and at most 2^28 steps.

    Raises:
        ConfigError: C is out of range.
    """
    if not LEAST_CLIP <= clip <= MOST_CLIP:
        raise ConfigError(
            f"Expected a clipping length from {LEAST_CLIP:g} to {MOST_CLIP:g}, got {clip!r}. Set privacy.clip."
        )
    mantissa, exponent = math.frexp(clip)
    return _CLIP_BITS - (exponent - 1 if mantissa == 0.5 else exponent)


_EMPTY = np.empty(0, dtype=np.int64)
_MOST = 2.0**62


@dataclass(frozen=True)
class _Table:
    """Boxes that cover the half curve of one σ, in units of which σ has 2^47 to 2^48.

    Attributes:
        std: σ.
        strips: [boxes] number of the strip that a box is in.
        layers: [boxes] number of the layer, of height 1/256.
        is_below: [boxes] whether the whole box lies below the curve.
    """

    std: float
    strips: _Integers
    layers: _Integers
    is_below: npt.NDArray[np.bool_]


@lru_cache(maxsize=8)
def _table(std: float) -> _Table:
    width = 2.0**_STRIP_BITS
    strips, layers, is_below = [], [], []
    for strip in range(math.ceil(_REACH * std / width)):
        top = math.exp(-0.5 * (strip * width / std) ** 2) * (1 + _MARGIN)
        bottom = math.exp(-0.5 * ((strip + 1) * width / std) ** 2) * (1 - _MARGIN)
        for layer in range(min(_LAYERS, math.ceil(top * _LAYERS))):
            strips.append(strip)
            layers.append(layer)
            is_below.append((layer + 1) / _LAYERS <= bottom)
    return _Table(std, np.array(strips), np.array(layers), np.array(is_below))


def _block(source: RandomSource, count: int, std: float) -> _Integers:
    """Return [count] draws of ⌊N(0, std²)⌋."""
    mantissa, exponent = math.frexp(std)
    table, cut = _table(math.ldexp(mantissa, _FINE_BITS)), _FINE_BITS - exponent
    parts: list[_Integers] = []
    while (missing := count - sum(map(len, parts))) > 0:
        parts.append(_proposed(source, int(1.1 * missing) + 16, table, cut)[:missing])
    return np.concatenate(parts)


def _proposed(source: RandomSource, count: int, table: _Table, cut: int) -> _Integers:
    """Return those of `count` proposals that are below the curve, cut by so many bits."""
    words = source.words(count)
    slots = (words >> np.uint64(_STRIP_BITS + 1)).astype(np.int64)  # 19 bits
    boxes = len(table.strips)
    has_box = slots < 2 ** (63 - _STRIP_BITS) // boxes * boxes  # so that each box is as likely
    slots, words = slots[has_box] % boxes, words[has_box]
    offsets = (words & np.uint64(2**_STRIP_BITS - 1)).astype(np.int64)
    values = (table.strips[slots] << _STRIP_BITS) + offsets
    kept = table.is_below[slots]
    [doubtful] = np.nonzero(~kept)
    kept[doubtful] = _are_below(source, values[doubtful], table.layers[slots[doubtful]], table.std)
    values = values[kept] >> min(cut, 62)
    is_negative = (words[kept] >> np.uint64(_STRIP_BITS)) & np.uint64(1) == 1
    deviates: _Integers = np.where(is_negative, ~values, values)
    return deviates  # ⌊-x⌋ = -⌊x⌋ - 1 where x is no integer


def _are_below(source: RandomSource, values: _Integers, layers: _Integers, std: float) -> npt.NDArray[np.bool_]:
    """Return which of the points, uniform in boxes on the curve's edge, lie below it."""
    bits = (source.words(len(values)) >> np.uint64(64 - _HEIGHT_BITS)).astype(np.int64)
    low = (layers + bits * 2.0**-_HEIGHT_BITS) / _LAYERS  # 60 bits at most, rounded to 53: within 2^-53
    curve = np.exp(-0.5 * np.square(values / std))
    is_below = low + 2.0**-51 <= curve * (1 - _MARGIN)
    [open_ones] = np.nonzero(~is_below & (low - 2.0**-51 <= curve * (1 + _MARGIN)))
    for index in open_ones.tolist():
        is_below[index] = _is_below(source, int(values[index]), int(layers[index]), int(bits[index]), std)
    return is_below


def _is_below(source: RandomSource, value: int, layer: int, bits: int, std: float) -> bool:
    """Return whether a point is below the curve, of which the leading bits are given and the others are drawn.

    Args:
        source: of further bits.
        value: v; the point's place is in [v, v + 1).
        layer: its height is in [layer, layer + 1) / 256, in a part of it that
        bits: tells, the leading 52 bits.
        std: σ.
    """
    place, height, places = value, (layer << _HEIGHT_BITS) + bits, 0
    while True:
        with localcontext() as context:
            context.prec = 60 + places
            near, far = (_curve(Decimal(end) / (1 << places), std) for end in (place, place + 1))
            guard, unit = Decimal(10) ** -(40 + places), _LAYERS << (_HEIGHT_BITS + places)
            if Decimal(height + 1) / unit <= far * (1 - guard):
                return True
            if Decimal(height) / unit >= near * (1 + guard):
                return False
        further = source.words(2).tolist()
        place, height, places = (place << 64) + further[0], (height << 64) + further[1], places + 64


def _curve(place: Decimal, std: float) -> Decimal:
    return (-(place * place) / (2 * Decimal(std) * Decimal(std))).exp()
