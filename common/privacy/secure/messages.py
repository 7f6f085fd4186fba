"""The messages of a round of secure aggregation, stage by stage; each has one encoding, and is read strictly.

`from_bytes` raises WireError for anything that is not one message of its kind, within the bounds of codec.py.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from torch import Tensor

from nufed.common.privacy.secure.codec import MOST_CLIENTS, Reader, counted, header, packed

KEY = 32
"""Bytes of an X25519 key, of a seed and of a SHA-256 hash."""

SHARE = 33
"""Bytes of a share: an element of the field of sharing.py."""

CIPHERTEXT = 2 * SHARE + 16
"""Bytes of two encrypted shares and their authentication tag."""

SIGNATURE = (8, 144)
"""Fewest and most bytes of an ECDSA signature over P-384 or smaller."""


@dataclass(frozen=True)
class SecureTask:
    """What a server asks its clients to add up, and with whom; all clients of a round are sent the same one.

    Attributes:
        run_id: of the run; a server that starts again takes another one.
        round: k, from 1.
        num_asked: clients that are asked.
        threshold: fewest clients whose sum is unmasked.
        neighbours: clients that each client draws to keep its shares; 0: all others.
        share_threshold: fewest shares that reconstruct a secret.
        total_weight: bound of the sum of weights, which fixes the integers' grid.
        model_digest: SHA-256 of the model that the clients start from.
        options_digest: SHA-256 of all else that decides what the integers mean.
    """

    run_id: str
    round: int
    num_asked: int
    threshold: int
    neighbours: int
    share_threshold: int
    total_weight: int
    model_digest: bytes
    options_digest: bytes

    def to_bytes(self) -> bytes:
        """Return the message's bytes."""
        return header("task") + packed(
            self.run_id,
            self.round,
            self.num_asked,
            self.threshold,
            self.neighbours,
            self.share_threshold,
            self.total_weight,
            self.model_digest,
            self.options_digest,
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message."""
        reader = Reader(content, "task")
        task = cls(
            reader.name(),
            reader.integer(),
            reader.integer(1, MOST_CLIENTS),
            reader.integer(1, MOST_CLIENTS),
            reader.integer(0, MOST_CLIENTS),
            reader.integer(1, MOST_CLIENTS),
            reader.integer(1),
            reader.blob(KEY),
            reader.blob(KEY),
        )
        reader.end()
        return task

    @property
    def digest(self) -> bytes:
        """SHA-256 of the task, to which every key and signature of the round is bound."""
        return sha256(self.to_bytes()).digest()


@dataclass(frozen=True)
class AdvertisedKeys:
    """A client's keys of one round, signed with the key that the roster has of it.

    Attributes:
        name: whose they are.
        mask_key: X25519, of which pairwise masks are made.
        share_key: X25519, with which shares are encrypted to this client.
        seed_commitment: SHA-256 that the seed of its self mask must have.
        view: SHA-256 of what else this client was told of the run, which must be the same for all.
        signature: over the task's digest and all of these.
    """

    name: str
    mask_key: bytes
    share_key: bytes
    seed_commitment: bytes
    view: bytes
    signature: bytes

    def fields(self) -> bytes:
        """Return what is signed, but for the task."""
        return packed(self.name, self.mask_key, self.share_key, self.seed_commitment, self.view)

    def packed(self) -> bytes:
        """Return the fields as a message holds them."""
        return self.fields() + packed(self.signature)

    def to_bytes(self) -> bytes:
        """Return the message's bytes."""
        return header("keys") + self.packed()

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the fields at the reader's place."""
        name, mask_key, share_key, seed_commitment, view = reader.name(), *(reader.blob(KEY) for _ in range(4))
        return cls(name, mask_key, share_key, seed_commitment, view, reader.blob(SIGNATURE))

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message."""
        reader = Reader(content, "keys")
        keys = cls.read(reader)
        reader.end()
        return keys


@dataclass(frozen=True)
class CohortKeys:
    """The keys of all clients of a round, in the order of their names, as every client is sent them."""

    members: tuple[AdvertisedKeys, ...]

    def to_bytes(self) -> bytes:
        """Return the message's bytes."""
        return header("cohort") + counted([member.packed() for member in self.members])

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message."""
        reader = Reader(content, "cohort")
        members = reader.items(lambda: AdvertisedKeys.read(reader))
        reader.ordered(tuple(member.name for member in members))
        reader.end()
        return cls(members)


@dataclass(frozen=True)
class Parcel:
    """Two shares of one client for another: of its mask key and of its seed.

    Attributes:
        peer: in EncryptedShares who is to keep them; in DeliveredShares whose they are.
        ciphertext: empty for the shares that a client keeps of itself.
        key_commitment: SHA-256 of the share of the mask key.
        seed_commitment: SHA-256 of the share of the seed.
    """

    peer: str
    ciphertext: bytes
    key_commitment: bytes
    seed_commitment: bytes

    def packed(self) -> bytes:
        """Return the fields as a message holds them."""
        return packed(self.peer, self.ciphertext, self.key_commitment, self.seed_commitment)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the fields at the reader's place."""
        return cls(reader.name(), reader.blob((0, CIPHERTEXT)), reader.blob(KEY), reader.blob(KEY))


@dataclass(frozen=True)
class EncryptedShares:
    """A client's shares for those that keep them, itself included.

    Attributes:
        name: whose secrets are shared.
        cohort_digest: SHA-256 of the task and the keys that the client was sent.
        parcels: in the order of the keepers' names.
    """

    name: str
    cohort_digest: bytes
    parcels: tuple[Parcel, ...]

    def to_bytes(self) -> bytes:
        """Return the message's bytes."""
        return (
            header("shares") + packed(self.name, self.cohort_digest) + counted([each.packed() for each in self.parcels])
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message."""
        reader = Reader(content, "shares")
        shares = cls(reader.name(), reader.blob(KEY), _read_parcels(reader))
        reader.end()
        return shares


@dataclass(frozen=True)
class DeliveredShares:
    """What a server hands to one client before it masks.

    Attributes:
        sharers: names of all clients that shared, in order.
        parcels: shares that this client is to keep, in the order of those whose they are.
    """

    sharers: tuple[str, ...]
    parcels: tuple[Parcel, ...]

    def to_bytes(self) -> bytes:
        """Return the message's bytes."""
        return (
            header("delivered")
            + counted([packed(name) for name in self.sharers])
            + counted([each.packed() for each in self.parcels])
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message."""
        reader = Reader(content, "delivered")
        delivered = cls(_read_names(reader), _read_parcels(reader))
        reader.end()
        return delivered


@dataclass(frozen=True)
class MaskedInput:
    """A client's integers under its masks; the arrays travel as the run's messages carry arrays.

    Attributes:
        name: whose they are.
        transcript: SHA-256 of the cohort and of those that shared, as the client saw them.
        arrays: flat int64 tensors by name, modulo 2^64.
        weight: the client's weight, masked like another element, from -2^63 to 2^63 - 1.
        unreadable: clients whose shares could not be opened.
    """

    name: str
    transcript: bytes
    arrays: dict[str, Tensor]
    weight: int
    unreadable: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the bytes of all but the arrays."""
        return (
            header("masked")
            + packed(self.name, self.transcript, self.weight % 2**64)
            + counted([packed(name) for name in self.unreadable])
        )

    @classmethod
    def from_bytes(cls, content: bytes, arrays: dict[str, Tensor]) -> Self:
        """Read a message that came with these arrays, which the server checks when it adds them."""
        reader = Reader(content, "masked")
        name, transcript = reader.name(), reader.blob(KEY)
        weight = reader.integer(high=2**64 - 1)
        unreadable = _read_names(reader)
        reader.end()
        return cls(name, transcript, arrays, weight - 2**64 * (weight >= 2**63), unreadable)


@dataclass(frozen=True)
class Survivors:
    """The clients whose sum a server wants to unmask.

    Attributes:
        transcript: see MaskedInput.
        names: in order.
    """

    transcript: bytes
    names: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Return the message's bytes, which each client signs."""
        return header("survivors") + packed(self.transcript) + counted([packed(name) for name in self.names])

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message."""
        reader = Reader(content, "survivors")
        survivors = cls(reader.blob(KEY), _read_names(reader))
        reader.end()
        return survivors


@dataclass(frozen=True)
class Confirmation:
    """A client's signature over the list of survivors that it was sent.

    Attributes:
        name: who signed.
        signature: over the list, with the key that the roster has of it.
    """

    name: str
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the message's bytes."""
        return header("confirmation") + packed(self.name, self.signature)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message."""
        reader = Reader(content, "confirmation")
        confirmation = cls(reader.name(), reader.blob(SIGNATURE))
        reader.end()
        return confirmation


@dataclass(frozen=True)
class ConfirmedSurvivors:
    """The signatures of clients over one list of survivors, in the order of their names."""

    confirmations: tuple[Confirmation, ...]

    def to_bytes(self) -> bytes:
        """Return the message's bytes."""
        return header("confirmed") + counted([packed(each.name, each.signature) for each in self.confirmations])

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message."""
        reader = Reader(content, "confirmed")
        confirmations = reader.items(lambda: Confirmation(reader.name(), reader.blob(SIGNATURE)))
        reader.ordered(tuple(each.name for each in confirmations))
        reader.end()
        return cls(confirmations)


@dataclass(frozen=True)
class RevealedShares:
    """The shares that a client gives out: of the seed of a client that stayed, of the mask key of one that is gone.

    Attributes:
        name: who kept them.
        shares: by the name of the client whose they are, in order.
    """

    name: str
    shares: tuple[tuple[str, bytes], ...]

    def to_bytes(self) -> bytes:
        """Return the message's bytes."""
        return header("revealed") + packed(self.name) + counted([packed(*each) for each in self.shares])

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message."""
        reader = Reader(content, "revealed")
        name = reader.name()
        shares = reader.items(lambda: (reader.name(), reader.blob(SHARE)))
        reader.ordered(tuple(peer for peer, _ in shares))
        reader.end()
        return cls(name, shares)

    def __repr__(self) -> str:
        """Return the message without the shares, which belong into no log."""
        return f"RevealedShares(name={self.name!r}, shares of {len(self.shares)})"


def _read_names(reader: Reader) -> tuple[str, ...]:
    names = reader.items(reader.name)
    reader.ordered(names)
    return names


def _read_parcels(reader: Reader) -> tuple[Parcel, ...]:
    parcels = reader.items(lambda: Parcel.read(reader))
    reader.ordered(tuple(each.peer for each in parcels))
    return parcels
