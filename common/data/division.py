"""Which examples stay together, and what each of them is: what the splits of own data follow from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nufed.common.data.array_trees import ArrayTree, named_arrays
from nufed.common.data.membership import KEY_BYTES, Keys

_AT_ONCE = 2**12


@dataclass(frozen=True)
class Names:
    """A name for each of N examples.

    Attributes:
        codes: [N] positions in `names`.
        names: differ from each other.
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]

    def take(self, rows: NDArray[np.int64]) -> "Names":
        """Return the names of some of the examples."""
        return Names(self.codes[rows], self.names)

    def keys(self) -> Keys:
        """Return the key of each example's name [N]."""
        digests = (hashlib.blake2b(_encoded(name), digest_size=KEY_BYTES).digest() for name in self.names)
        return _keys(b"".join(digests))[self.codes]


@dataclass(frozen=True)
class Division:
    """What the splits of N examples follow from.

    Attributes:
        contents: [N] keys of what each example is, by which examples are put in order; equal ones have one key.
        groups: [N] keys of the group of each; None where equal examples alone stay together.
        parts: [N] positions in `membership.PARTS` that the source itself says; None if it says none.
    """

    contents: Keys
    groups: Keys | None = None
    parts: NDArray[np.int64] | None = None

    @property
    def units(self) -> Keys:
        """Return [N] keys of what stays together."""
        return self.contents if self.groups is None else self.groups


def names_of(texts: Sequence[str]) -> Names:
    """Return the names that stand in a list, one for each example."""
    known: dict[str, int] = {}
    codes = [known.setdefault(text, len(known)) for text in texts]
    return Names(np.array(codes, dtype=np.int64), tuple(known))


def joined_names(parts: Sequence[Names]) -> Names:
    """Return names that are made of one of each of the parts."""
    if len(parts) == 1:
        return parts[0]
    codes, joined = np.unique(np.stack([part.codes for part in parts], axis=1), axis=0, return_inverse=True)
    names = ("\x1f".join(part.names[code] for part, code in zip(parts, row, strict=True)) for row in codes.tolist())
    return Names(joined.reshape(-1).astype(np.int64), tuple(names))


def content_keys(inputs: ArrayTree, targets: ArrayTree, *, in_double: bool = False) -> Keys:
    """Return the key of each of N examples [N]: a hash of its inputs and target.

    Args:
        inputs: [N, ...], one array or several.
        targets: [N, ...], likewise.
        in_double: whether numbers are compared in float64, in whatever precision they are held.
    """
    arrays = [array for tree in (inputs, targets) for _, array in named_arrays(tree)]
    digests = bytearray()
    for first in range(0, len(arrays[0]), _AT_ONCE):
        parts = [array[first : first + _AT_ONCE] for array in arrays]
        if in_double:
            parts = [part.astype(np.float64) if part.dtype.kind == "f" else part for part in parts]
        for row in zip(*map(_canonical, parts), strict=True):
            digest = hashlib.blake2b(digest_size=KEY_BYTES)
            for part in row:
                digest.update(part.tobytes())
            digests += digest.digest()
    return _keys(bytes(digests))


def _canonical(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return values of which equal ones have equal bytes: adding 0 makes -0 a 0, and NaN has one form in tables."""
    return values + np.zeros((), values.dtype) if values.dtype.kind == "f" else values


def _keys(digests: bytes) -> Keys:
    return np.frombuffer(digests, dtype=f"V{KEY_BYTES}")


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")
