"""The server's part in a round: it collects each stage's messages, knows when they are enough, and removes the masks.

It holds one sum, whatever the number of clients. What is wrong with one client's message is a WireError, which costs
that client its part in the rest of the round; a round that cannot end with a sum is a RoundFailedError.
"""

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from nufed.common.errors import WireError
from nufed.common.privacy.secure.failures import RoundFailedError
from nufed.common.privacy.secure.masks import add_masks
from nufed.common.privacy.secure.messages import (
    CIPHERTEXT,
    AdvertisedKeys,
    CohortKeys,
    Confirmation,
    ConfirmedSurvivors,
    DeliveredShares,
    EncryptedShares,
    MaskedInput,
    Parcel,
    RevealedShares,
    SecureTask,
    Survivors,
)
from nufed.common.privacy.secure.plan import num_neighbours
from nufed.common.privacy.secure.roster import Roster
from nufed.common.privacy.secure.transcript import ADVERTISE, SURVIVORS, cohort_digest, sharers_digest
from nufed.common.privacy.secure.unmasking import Unmasking
from nufed.common.untrusted import shown

Message = TypeVar("Message", AdvertisedKeys, EncryptedShares, Confirmation, RevealedShares)


@dataclass(frozen=True)
class UnmaskedSum:
    """What a round was for.

    Attributes:
        sums: flat int64 tensors by name, the sums of the survivors' integers.
        weight: the sum of their weights.
        names: of the survivors, in order.
    """

    sums: dict[str, Tensor]
    weight: int
    names: tuple[str, ...]


class SecureServer:
    """Holds what a round's clients have sent so far; stages follow each other as the `close_` methods are called.

    Args:
        task: what the clients were asked for.
        roster: the clients there are, with which signatures are checked before clients see them.
        sizes: elements of each array.
    """

    def __init__(self, task: SecureTask, roster: Roster, sizes: Mapping[str, int]) -> None:
        self.task = task
        self._roster, self._sizes = roster, dict(sizes)
        self._keys: dict[str, AdvertisedKeys] = {}
        self._shares: dict[str, EncryptedShares] = {}
        self._confirmations: dict[str, Confirmation] = {}
        self._revealed: dict[str, RevealedShares] = {}
        self._cohort = self._transcript = b""
        self._survivors = Survivors(b"", ())
        self._masked: set[str] = set()
        self._sums: dict[str, Tensor] = {}
        self._weight = 0
        self.unreadable: dict[str, set[str]] = {}
        """Whose shares could not be opened, and by whom: a hostile client, or a disturbed line."""

    def add_keys(self, keys: AdvertisedKeys) -> None:
        """Take a client's keys.

        Raises:
            WireError: the client is not in the roster or did not sign them, or a key is another client's already.
        """
        if not self._roster.has_signed(keys.name, keys.signature, ADVERTISE, self.task.digest, keys.fields()):
            raise WireError(
                f"Expected round keys that a client of the roster signed, got others in the name of "
                f"{shown(keys.name)}. Renew the roster, or revoke that client."
            )
        others = [each for each in self._keys.values() if each.name != keys.name]
        taken = {key for each in others for key in (each.mask_key, each.share_key)}
        if keys.mask_key == keys.share_key or taken & {keys.mask_key, keys.share_key}:
            raise WireError(f"Expected round keys of its own from {shown(keys.name)}, got a key twice.")
        self._store(self._keys, keys)

    def close_keys(self) -> CohortKeys:
        """Return what each client is sent next; clients that were told other options of the run than most are left out.

        Raises:
            RoundFailedError: fewer clients than the threshold sent keys.
        """
        views = Counter(keys.view for keys in self._keys.values())
        view = max(sorted(views), key=views.__getitem__, default=b"")
        self._keys = {name: keys for name, keys in self._keys.items() if keys.view == view}
        self._enough(len(self._keys), "sent keys and were told the same options of the run")
        cohort = CohortKeys(tuple(self._keys[name] for name in sorted(self._keys)))
        self._cohort = cohort_digest(self.task, cohort)
        return cohort

    def add_shares(self, shares: EncryptedShares) -> None:
        """Take a client's encrypted shares.

        Raises:
            WireError: they are not for as many keepers as asked, or of another cohort.
        """
        self._among(shares.name, self._keys, "sent keys")
        if shares.cohort_digest != self._cohort:
            raise WireError(f"Expected shares among the round's cohort from {shown(shares.name)}, got others.")
        peers = [parcel.peer for parcel in shares.parcels]
        if (
            len(set(peers)) != len(peers)
            or peers != sorted(peers)
            or len(peers) != num_neighbours(self.task, len(self._keys)) + 1
            or shares.name not in peers
            or not set(peers) <= self._keys.keys()
            or any(len(each.ciphertext) != CIPHERTEXT * (each.peer != shares.name) for each in shares.parcels)
        ):
            raise WireError(f"Expected a share for each neighbour from {shown(shares.name)}, got others.")
        self._store(self._shares, shares)

    def close_shares(self) -> dict[str, DeliveredShares]:
        """Return what each client that shared is sent next, by name.

        Raises:
            RoundFailedError: fewer clients than the threshold shared.
        """
        self._enough(len(self._shares), "shared their secrets")
        sharers = tuple(sorted(self._shares))
        self._transcript = sharers_digest(self._cohort, sharers)
        boxes: dict[str, list[Parcel]] = {name: [] for name in sharers}
        for sender in sharers:
            for each in self._shares[sender].parcels:
                if each.peer != sender and each.peer in boxes:
                    boxes[each.peer].append(Parcel(sender, each.ciphertext, each.key_commitment, each.seed_commitment))
        return {name: DeliveredShares(sharers, tuple(parcels)) for name, parcels in boxes.items()}

    def add_masked(self, masked: MaskedInput) -> None:
        """Add a client's masked integers to the sum.

        Raises:
            WireError: they are of another shape or transcript, or this client's have been added.
        """
        self._among(masked.name, self._shares, "shared")
        if masked.name in self._masked:
            raise WireError(f"Expected the integers of {shown(masked.name)} once, got them again.")
        if masked.transcript != self._transcript:
            raise WireError(f"Expected integers masked in this round from {shown(masked.name)}, got others.")
        if masked.arrays.keys() != self._sizes.keys() or any(
            array.dtype != torch.int64 or array.numel() != self._sizes[name] for name, array in masked.arrays.items()
        ):
            raise WireError(f"Expected 64-bit integers of the model's sizes from {shown(masked.name)}, got others.")
        self._masked.add(masked.name)
        for name, array in masked.arrays.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(self._sizes[name], dtype=torch.int64)
            self._sums[name].add_(array.reshape(-1))
        self._weight += masked.weight
        for dealer in masked.unreadable:
            if dealer in self._shares:
                self.unreadable.setdefault(dealer, set()).add(masked.name)

    def close_masked(self) -> Survivors:
        """Return the list of survivors, which each of them is asked to sign.

        Raises:
            RoundFailedError: fewer clients than the threshold sent integers.
        """
        self._enough(len(self._masked), "sent masked integers")
        self._survivors = Survivors(self._transcript, tuple(sorted(self._masked)))
        return self._survivors

    def add_confirmation(self, confirmation: Confirmation) -> None:
        """Take a survivor's signature.

        Raises:
            WireError: it is none of a survivor over the list.
        """
        self._among(confirmation.name, self._masked, "sent masked integers")
        content = self._survivors.to_bytes()
        if not self._roster.has_signed(confirmation.name, confirmation.signature, SURVIVORS, content):
            raise WireError(f"Expected a signature over the list of survivors from {shown(confirmation.name)}.")
        self._store(self._confirmations, confirmation)

    def close_confirmations(self) -> ConfirmedSurvivors:
        """Return the signatures, which each client that signed is sent.

        Raises:
            RoundFailedError: fewer clients than the threshold signed.
        """
        self._enough(len(self._confirmations), "signed the list of survivors")
        return ConfirmedSurvivors(tuple(self._confirmations[name] for name in sorted(self._confirmations)))

    def add_revealed(self, revealed: RevealedShares) -> None:
        """Take the shares that a client gives out; those that are not as committed are left out.

        Raises:
            WireError: it is no survivor that signed, or it sends others' shares twice.
        """
        self._among(revealed.name, self._confirmations, "signed the list of survivors")
        names = [name for name, _ in revealed.shares]
        if names != sorted(set(names)):
            raise WireError(f"Expected one share of each client from {shown(revealed.name)}, got others.")
        self._store(self._revealed, revealed)

    def unmask(self) -> UnmaskedSum:
        """Return the survivors' sum.

        Raises:
            RoundFailedError: too few shares of a client's secret were given out, or they contradict what it committed
                to, or the weights show that a client masked otherwise than agreed.
        """
        self._enough(len(self._revealed), "gave out shares")
        names = self._survivors.names
        unmasking = Unmasking(self.task, self._cohort, self._keys, self._shares)
        plus, minus = unmasking.masks(names, list(self._revealed.values()))
        # What the clients added is subtracted, and the other way round.
        weight = add_masks(self._sums, _wrapped(self._weight), minus, plus)
        if not len(names) <= weight <= self.task.total_weight:
            raise RoundFailedError(
                f"Expected a sum of weights from {len(names)} to {self.task.total_weight} of {len(names)} clients, got "
                f"{weight}: a client masked otherwise than agreed. Look which client is new, and start another round."
            )
        return UnmaskedSum(self._sums, weight, names)

    def _store(self, place: dict[str, Message], message: Message) -> None:
        """Keep a client's message; the same one again changes nothing."""
        if place.setdefault(message.name, message) != message:
            raise WireError(f"Expected one message of each stage from {shown(message.name)}, got a second one.")

    def _among(self, name: str, allowed: Container[str], what: str) -> None:
        if name not in allowed:
            raise WireError(f"Expected a message of a client that {what}, got one of {shown(name)}.")

    def _enough(self, count: int, what: str) -> None:
        if count < self.task.threshold:
            raise RoundFailedError(
                f"Expected {self.task.threshold} of {self.task.num_asked} clients, got {count} that {what}. Look at "
                "the clients' logs; lower privacy.secure-threshold if so many are often gone."
            )


def _wrapped(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
