"""A client's own examples, divided; and a hash of each, by which it is known again in a changed file."""

import hashlib
from dataclasses import dataclass

import numpy as np

from nufed.common.data.dealt_client import SplitRows
from nufed.common.data.pool import Array, Rows
from nufed.common.data.private.rows import PrivateRows

_HASH_BYTES = 16


@dataclass(frozen=True)
class SplitHashes:
    """Hashes of examples as they were read, before they are filled in and scaled. They stay on the client's machine.

    Attributes:
        support: trained on and adapted to.
        test: judged on.
    """

    support: tuple[bytes, ...]
    test: tuple[bytes, ...]


def hash_split(rows: PrivateRows, split: SplitRows) -> SplitHashes:
    """Return the hashes of a client's support and test split."""
    test = _hashes(rows, split.test) if rows.test is None else _hashes(rows.test, np.arange(len(rows.test)))
    return SplitHashes(_hashes(rows, split.support), test)


def _hashes(rows: PrivateRows, numbers: Rows) -> tuple[bytes, ...]:
    targets = np.zeros(len(rows)) if rows.targets is None else rows.targets
    return tuple(_hash(rows.inputs[number], targets[number]) for number in numbers)


def _hash(inputs: Array, target: Array) -> bytes:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for part in (inputs, target):
        # Adding 0 makes -0 a 0; NaN, which stands for an empty cell, has one form in tables.
        digest.update(np.ascontiguousarray(part if part.dtype.kind != "f" else part + 0.0).tobytes())
    return digest.digest()
