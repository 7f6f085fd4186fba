"""One client's part in one round: what it answers at each stage, and what it refuses."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import NoReturn, TypeVar, cast

from torch import Tensor

from nufed.common.privacy.secure.failures import UnsafeRoundError
from nufed.common.privacy.secure.keys import Entropy, Identity
from nufed.common.privacy.secure.masks import add_masks, content_digest
from nufed.common.privacy.secure.messages import (
    KEY,
    AdvertisedKeys,
    CohortKeys,
    Confirmation,
    ConfirmedSurvivors,
    DeliveredShares,
    EncryptedShares,
    MaskedInput,
    RevealedShares,
    SecureTask,
    Survivors,
)
from nufed.common.privacy.secure.plan import ClientPolicy, num_neighbours
from nufed.common.privacy.secure.roster import Roster
from nufed.common.privacy.secure.round_secrets import RoundSecrets
from nufed.common.privacy.secure.transcript import ADVERTISE, SURVIVORS, cohort_digest, sharers_digest
from nufed.common.untrusted import shown

Answer = TypeVar("Answer")

_STAGES = ("advertise", "share", "mask", "confirm", "reveal")


class SecureClient:
    """Holds a client's secrets of one round, and answers each stage once.

    The same request again gets the same answer, as a network may deliver it twice; another request of a stage that was
    answered is refused, because two answers could tell what one does not. After an error of a stage before `reveal`
    the server may ask again, with what the client agrees to.

    Raises:
        UnsafeRoundError: the task protects too little, or the client is not in the roster.
    """

    def __init__(  # noqa: PLR0913 - keyword-only but for three
        self,
        task: SecureTask,
        identity: Identity,
        roster: Roster,
        *,
        view: bytes = bytes(KEY),
        policy: ClientPolicy = ClientPolicy(),  # noqa: B008 - frozen
        entropy: Entropy = os.urandom,
    ) -> None:
        """Make the round's keys.

        Args:
            task: what the server asks for.
            identity: this client's name and signing key.
            roster: the clients that this client believes to exist.
            view: SHA-256 of all else that it was told of the run; a round is with those alone who were told the same.
            policy: what it insists on.
            entropy: where its secrets come from; for tests.
        """
        policy.check(task)
        own = roster.keys.get(identity.name)
        if own is None or own.public_numbers() != identity.key.public_key().public_numbers():
            raise UnsafeRoundError(
                f"Expected a roster that has this client's key, {shown(identity.name)}, got one without. Ask the "
                "federation's operator for a new roster."
            )
        self.task = task
        self._identity, self._roster, self._policy, self._view = identity, roster, policy, view
        self._secrets = RoundSecrets(task, identity.name, entropy)
        self._answers: dict[str, tuple[bytes, object]] = {}
        self._members: dict[str, AdvertisedKeys] = {}
        self._cohort = b""
        self._transcript = b""
        self._partners: tuple[str, ...] = ()
        self._sharers: tuple[str, ...] = ()
        self._survivors: Survivors | None = None
        self.unreadable: tuple[str, ...] = ()

    @property
    def has_masked(self) -> bool:
        """Whether the server has been given this client's integers under masks."""
        return "mask" in self._answers

    def advertise(self) -> AdvertisedKeys:
        """Return this client's signed keys of the round."""
        return self._once("advertise", b"", self._advertise)

    def share(self, keys: CohortKeys) -> EncryptedShares:
        """Return the shares of this client's secrets, encrypted to those that are to keep them.

        Raises:
            UnsafeRoundError: the cohort is too small, lacks this client or has one that the roster does not know or
                that did not sign its keys.
        """
        return self._once("share", sha256(keys.to_bytes()).digest(), lambda: self._share(keys))

    def mask(
        self, delivered: DeliveredShares, sums: Mapping[str, Tensor], weight: int, model_digest: bytes
    ) -> MaskedInput:
        """Return this client's integers under its masks; they are masked in place.

        Args:
            delivered: who shared, and the shares that this client is to keep.
            sums: flat int64 tensors, contiguous; changed.
            weight: this client's, added up as well.
            model_digest: SHA-256 of the model that this client started from.

        Raises:
            UnsafeRoundError: too few clients shared, or the server sent this client another model than it announced.
        """
        request = sha256(delivered.to_bytes() + model_digest + content_digest(sums, weight)).digest()
        self._once("mask", request, lambda: self._accept(delivered, weight, model_digest))
        # The answer is as large as the model, so it is made again where it is asked for again, of the same integers.
        self._secrets.check_held()
        plus, minus = self._secrets.masks(self._cohort, {name: self._members[name] for name in self._partners})
        arrays = dict(sums)
        masked = add_masks(arrays, weight, plus, minus)
        return MaskedInput(self._identity.name, self._transcript, arrays, masked, self.unreadable)

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Return this client's signature over the one list of survivors that it will help to unmask.

        Raises:
            UnsafeRoundError: the list lacks this client, has one that did not share, or is too short.
        """
        return self._once("confirm", sha256(survivors.to_bytes()).digest(), lambda: self._confirm(survivors))

    def reveal(self, confirmed: ConfirmedSurvivors) -> RevealedShares:
        """Return shares: of the seeds of those that stayed, of the mask keys of those that did not.

        Raises:
            UnsafeRoundError: too few survivors signed the list that this client signed, or one signature is none.
        """
        return self._once("reveal", sha256(confirmed.to_bytes()).digest(), lambda: self._reveal(confirmed))

    def forget(self) -> None:
        """Drop all secrets of the round; nothing that was not answered is answered any more."""
        self._secrets.erase()

    def __repr__(self) -> str:
        """Return a text without secrets."""
        return f"SecureClient({self._identity.name!r}, round {self.task.round}, answered {', '.join(self._answers)})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("Expected secrets of a round to stay in the process that made them; do not pickle them.")

    def _once(self, stage: str, request: bytes, answer: Callable[[], Answer]) -> Answer:
        """Return the answer to a stage's request: a new one in its turn, the same one where it was asked before."""
        if stage in self._answers:
            self._same(stage, request)
            return cast("Answer", self._answers[stage][1])
        if len(self._answers) != _STAGES.index(stage):
            raise UnsafeRoundError(
                f"Expected stage {_STAGES[len(self._answers) % len(_STAGES)]!r} of round {self.task.round}, got "
                f"{stage!r}. Start another round."
            )
        self._secrets.check_held()
        made = answer()
        self._answers[stage] = request, made
        return made

    def _same(self, stage: str, request: bytes) -> None:
        if self._answers[stage][0] != request:
            raise UnsafeRoundError(
                f"Expected the request of stage {stage!r} that was answered already, got another one in round "
                f"{self.task.round}. Start another round."
            )

    def _advertise(self) -> AdvertisedKeys:
        secrets = self._secrets
        own = secrets.mask_key.public, secrets.share_key.public, secrets.seed_commitment, self._view
        unsigned = AdvertisedKeys(self._identity.name, *own, b"")
        return replace(unsigned, signature=self._identity.sign(ADVERTISE, self.task.digest, unsigned.fields()))

    def _share(self, keys: CohortKeys) -> EncryptedShares:
        name, members = self._identity.name, {member.name: member for member in keys.members}
        if len(members) != len(keys.members) or list(members) != sorted(members):
            raise UnsafeRoundError(
                "Expected each client of a cohort once and in order, got others. Refuse this server."
            )
        if not self.task.threshold <= len(members) <= self.task.num_asked:
            raise UnsafeRoundError(
                f"Expected a cohort of {self.task.threshold} to {self.task.num_asked} clients, got {len(members)}. "
                "Start another round."
            )
        if members.get(name) != self._answers["advertise"][1]:
            raise UnsafeRoundError(f"Expected a cohort with the keys of {shown(name)} itself, got one without them.")
        if unknown := [other for other in members if other not in self._roster.keys]:
            raise UnsafeRoundError(
                f"Expected clients of the roster alone, got {shown(unknown[0])}. Get a newer roster, or refuse this "
                "server."
            )
        if others := [other.name for other in keys.members if other.view != self._view]:
            raise UnsafeRoundError(
                f"Expected clients that were told the same options of the run as this one, and {shown(others[0])} was "
                "told others. Refuse this server."
            )
        if len({member.mask_key for member in keys.members} | {m.share_key for m in keys.members}) != 2 * len(members):
            raise UnsafeRoundError("Expected keys of one client each, got a key twice. Refuse this server.")
        self._policy.check_sharing(self.task, len(members))
        others = [other for other in members if other != name]
        keepers = self._secrets.draw_keepers(others, num_neighbours(self.task, len(members)))
        self._check_signed(members, keepers)
        self._cohort = cohort_digest(self.task, keys)
        self._members = members
        parcels = self._secrets.parcels(self._cohort, {keeper: members[keeper] for keeper in keepers})
        return EncryptedShares(name, self._cohort, parcels)

    def _check_signed(self, members: Mapping[str, AdvertisedKeys], names: Iterable[str]) -> None:
        for other in names:
            keys = members[other]
            if not self._roster.has_signed(other, keys.signature, ADVERTISE, self.task.digest, keys.fields()):
                raise UnsafeRoundError(
                    f"Expected keys that {shown(other)} signed for this round, got others. Refuse this server, or get "
                    "a newer roster."
                )

    def _accept(self, delivered: DeliveredShares, weight: int, model_digest: bytes) -> None:
        """Check and keep what the server delivered, and settle with whom this client masks."""
        name, sharers = self._identity.name, set(delivered.sharers)
        if model_digest != self.task.model_digest:
            raise UnsafeRoundError(
                "Expected the model that all clients of the round were promised, got another one. Refuse this server."
            )
        if not 1 <= weight <= self.task.total_weight - (self.task.num_asked - 1):
            raise UnsafeRoundError(
                f"Expected a total weight that has room for this client's {weight}, got {self.task.total_weight}. "
                "Refuse this server."
            )
        self._check_list(delivered.sharers, self._members, "clients that shared")
        senders = [parcel.peer for parcel in delivered.parcels]
        if senders != sorted(set(senders)) or not set(senders) <= sharers - {name}:
            raise UnsafeRoundError("Expected shares of clients that shared, each once, got others. Refuse this server.")
        staying = sharers.intersection(self._secrets.keepers)
        if len(staying) + 1 < self.task.share_threshold:
            raise UnsafeRoundError(
                f"Expected {self.task.share_threshold} keepers of this client's shares to stay, got "
                f"{len(staying) + 1}. Start another round."
            )
        self._check_signed(self._members, set(senders).difference(self._secrets.keepers))
        self.unreadable = self._secrets.keep(self._cohort, self._members, delivered.parcels)
        self._partners = tuple(sorted(staying.union(senders)))
        self._sharers = delivered.sharers
        self._transcript = sharers_digest(self._cohort, delivered.sharers)

    def _confirm(self, survivors: Survivors) -> Confirmation:
        if survivors.transcript != self._transcript:
            raise UnsafeRoundError(
                "Expected survivors of the round in which this client masked, got those of another one. Refuse this "
                "server."
            )
        self._check_list(survivors.names, self._sharers, "survivors")
        self._survivors = survivors
        return Confirmation(self._identity.name, self._identity.sign(SURVIVORS, survivors.to_bytes()))

    def _reveal(self, confirmed: ConfirmedSurvivors) -> RevealedShares:
        survivors = cast("Survivors", self._survivors)  # confirm came before
        names, content = [each.name for each in confirmed.confirmations], survivors.to_bytes()
        self._check_list(names, survivors.names, "survivors that signed", needs_self=False)
        for each in confirmed.confirmations:
            if not self._roster.has_signed(each.name, each.signature, SURVIVORS, content):
                raise UnsafeRoundError(
                    f"Expected {shown(each.name)} to have signed the list of survivors that this client signed, got "
                    "another signature. Refuse this server."
                )
        shares = self._secrets.revealed(self._sharers, survivors.names)
        self._secrets.erase()
        return RevealedShares(self._identity.name, shares)

    def _check_list(
        self, names: Sequence[str], allowed: Collection[str], what: str, *, needs_self: bool = True
    ) -> None:
        """Raise UnsafeRoundError unless names are in order, among those allowed, and as many as the threshold."""
        if list(names) != sorted(set(names)) or not set(names) <= set(allowed):
            raise UnsafeRoundError(f"Expected {what} of this round, each once, got others. Refuse this server.")
        if len(names) < self.task.threshold:
            raise UnsafeRoundError(
                f"Expected at least {self.task.threshold} {what}, got {len(names)}. Start another round."
            )
        if needs_self and self._identity.name not in names:
            raise UnsafeRoundError(
                f"Expected this client, {shown(self._identity.name)}, among the {what}. Start another round."
            )
