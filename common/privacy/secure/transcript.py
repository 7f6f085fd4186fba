"""Hashes of what the clients of a round have seen, to which their keys and signatures are bound."""

from collections.abc import Iterable
from hashlib import sha256

from nufed.common.privacy.secure.codec import counted, packed
from nufed.common.privacy.secure.messages import CohortKeys, SecureTask

ADVERTISE = "advertise"
SURVIVORS = "survivors"
SEED = "seed of a self mask"
SHARE_OF_KEY = "share of a mask key"
SHARE_OF_SEED = "share of a seed"
PAIRWISE = "pairwise mask"
SELF = "self mask"
PARCEL = "parcel"


def cohort_digest(task: SecureTask, keys: CohortKeys) -> bytes:
    """Return SHA-256 of the task and of all keys, i.e. of who takes part in what."""
    return sha256(packed("cohort", task.digest, keys.to_bytes())).digest()


def sharers_digest(cohort: bytes, sharers: Iterable[str]) -> bytes:
    """Return SHA-256 of the cohort and of those of it that shared, the transcript of a round."""
    return sha256(packed("sharers", cohort) + counted([packed(name) for name in sharers])).digest()


def parcel_context(cohort: bytes, sender: str, keeper: str, *commitments: bytes) -> bytes:
    """Return the associated data of one client's shares for another."""
    return packed("parcel", cohort, sender, keeper, *commitments)
