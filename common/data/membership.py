"""Which examples are for training, validation and test, so that an example more or less moves no other.

What must stay together is a *unit*: the examples of one group (a patient), or equal examples. A keyed hash places every
unit in [0, 1) twice; below the fraction of the test it is a test unit, else below that of the validation a validation
unit. So a unit's place follows from the key and the unit alone, not from what else there is or in which order.

Only where that leaves nothing to train on or to be judged on, or takes more than twice the share, the units nearest to
the fraction change sides; and so that every class is in each split, where that can move at most one in a hundred.
Figures: docs/decisions/0013-splits-by-hash.md.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
"""Of the name of a unit: a digest of its group or of its content."""

Keys = NDArray[np.void]
"""[N], of type V16: the unit that each example belongs to."""

PARTS = ("support", "validation", "test")
"""The splits, in the order of their numbers."""

_LARGEST_SHARE = 2.0

_UNITS_FOR_A_CLASS = 100
"""A class of few units moves one of them when another comes: 1 % of a split of so many units for every class."""


@dataclass(frozen=True)
class Parts:
    """Positions of the examples of each split, among those that were divided, in their order."""

    support: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def num_units(keys: Keys) -> int:
    """Return how many units N examples are of."""
    return len(np.unique(keys))


def membership(keys: Keys, strata: NDArray[np.int64], key: int, *, test: float, validation: float) -> Parts:
    """Return the split of each of N examples of one client; units stay whole.

    Args:
        keys: [N] units.
        strata: [N] classes, each of which should be in every split; all 0 where there are none.
        key: of the hash; another one for every run's seed and client.
        test: expected share of the units that are test units; 0 makes none.
        validation: expected share of the others that are validation units; 0 makes none.
    """
    units, codes = np.unique(keys, return_inverse=True)
    ranks = _ranks(units, key)
    classes = _unit_strata(codes, strata, len(units))
    in_test = _below(ranks[:, 0], classes, test)
    in_validation = np.zeros(len(units), dtype=bool)
    rest = np.flatnonzero(~in_test)
    in_validation[rest] = _below(ranks[rest, 1], classes[rest], validation)
    of_test, of_validation = in_test[codes], in_validation[codes]
    return Parts(*(np.flatnonzero(rows) for rows in (~of_test & ~of_validation, of_validation, of_test)))


def _ranks(units: Keys, key: int) -> NDArray[np.float64]:
    """Return [U, 2] numbers in [0, 1) that follow from the unit and the key."""
    secret = key.to_bytes(8, "big")
    digests = (hashlib.blake2b(unit.tobytes(), key=secret, digest_size=16).digest() for unit in units)
    numbers = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
    return (numbers >> np.uint64(11)).astype(np.float64) / 2.0**53


def _unit_strata(codes: NDArray[np.int64], strata: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """Return the most frequent class of each unit [U], the first of those that are as frequent."""
    pairs, counts = np.unique(np.stack([codes, strata], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))
    firsts = order[np.searchsorted(pairs[order, 0], np.arange(num))]
    frequent: NDArray[np.int64] = pairs[firsts, 1]
    return frequent


def _below(ranks: NDArray[np.float64], classes: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """Return which units [U] are below the fraction, corrected for the client as a whole, and then class by class."""
    if fraction == 0 or len(ranks) < 2:
        return np.zeros(len(ranks), dtype=bool)
    most = min(max(1, int(_LARGEST_SHARE * fraction * len(ranks))), len(ranks) - 1)
    chosen = _corrected(ranks, ranks < fraction, 1, most)
    names = np.unique(classes)
    if len(names) * _UNITS_FOR_A_CLASS > chosen.sum():
        return chosen
    for name in names:
        own = np.flatnonzero(classes == name)
        chosen[own] = _corrected(ranks[own], chosen[own], int(len(own) * fraction >= 1), max(len(own) - 1, 1))
    return chosen


def _corrected(ranks: NDArray[np.float64], chosen: NDArray[np.bool_], least: int, most: int) -> NDArray[np.bool_]:
    """Return `chosen` with as few further units or fewer as the bounds ask for, those of the lowest ranks first."""
    wanted = min(max(int(chosen.sum()), least), most)
    missing = wanted - int(chosen.sum())
    chosen = chosen.copy()
    if missing > 0:
        others = np.flatnonzero(~chosen)
        chosen[others[np.argsort(ranks[others], kind="stable")[:missing]]] = True
    elif missing < 0:
        own = np.flatnonzero(chosen)
        chosen[own[np.argsort(-ranks[own], kind="stable")[:-missing]]] = False
    return chosen
