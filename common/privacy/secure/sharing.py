"""Shamir's secret sharing (1979) of 32 bytes over the integers modulo the prime 2^256 + 297.

One element holds a whole secret, and Python multiplies such integers in a fraction of a microsecond: a hundred shares
of threshold 67 take about a millisecond. Fewer shares than the threshold fit every secret equally well. Python's
integers take times that depend on their values, which nobody but this machine's own users can measure.
"""

from collections.abc import Sequence

from nufed.common.privacy.secure.keys import Entropy
from nufed.common.privacy.secure.messages import KEY, SHARE

PRIME = 2**256 + 297
"""The smallest prime above 2^256."""


def split(secret: bytes, count: int, threshold: int, entropy: Entropy) -> list[bytes]:
    """Return shares of a secret, of which any `threshold` give it back and fewer tell nothing.

    Args:
        secret: 32 bytes.
        count: shares; share i is the polynomial's value at i + 1.
        threshold: from 1 to `count`.
        entropy: where the other coefficients come from.

    Returns:
        33 bytes each.

    Raises:
        ValueError: the sizes are others, which no caller in this package makes.
    """
    if len(secret) != KEY or not 1 <= threshold <= count < PRIME:
        raise ValueError(f"expected 32 bytes and 1 <= threshold <= count, got {len(secret)}, {threshold} and {count}")
    coefficients = [int.from_bytes(secret), *(_uniform(entropy) for _ in range(threshold - 1))]
    shares = []
    for point in range(1, count + 1):
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE))
    return shares


class Recombination:
    """Holds Lagrange's factors at 0 for shares at certain points, which are the same for each secret shared there.

    Args:
        points: numbers of shares, from 0, each once.
    """

    def __init__(self, points: Sequence[int]) -> None:
        places = [point + 1 for point in points]
        self._factors = []
        for place in places:
            above, below = 1, 1
            for other in places:
                if other != place:
                    above = above * other % PRIME
                    below = below * (other - place) % PRIME
            self._factors.append(above * pow(below, -1, PRIME) % PRIME)

    def secret(self, shares: Sequence[bytes]) -> bytes | None:
        """Return the secret of shares in the order of the points; None if they are shares of no 32 bytes."""
        terms = (factor * int.from_bytes(share) for factor, share in zip(self._factors, shares, strict=True))
        value = sum(terms) % PRIME
        return value.to_bytes(KEY) if value < 2**256 else None


def _uniform(entropy: Entropy) -> int:
    """Return an element of the field, each equally likely up to 2^-247."""
    return int.from_bytes(entropy(2 * KEY)) % PRIME
