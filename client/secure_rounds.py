"""What a client keeps of a round of secure aggregation between messages, in whichever process the next one is answered.

A client of `nufed client` answers all messages in one process, which holds the round. Flower's own SuperNodes, and
simulations in several processes, answer each message in another one. So the node's state, which Flower keeps on the
client's machine and brings along, has what the round can be made again from: a seed of 256 bits that all of its secrets
are drawn from, and what the server has asked. From the seed and the same requests follow the same answers.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor

from nufed.common.encoding_task import EncodingTask
from nufed.common.privacy.secure import (
    AdvertisedKeys,
    CohortKeys,
    Confirmation,
    ConfirmedSurvivors,
    DeliveredShares,
    EncryptedShares,
    Identity,
    MaskedInput,
    RevealedShares,
    Roster,
    SecureClient,
    SecureTask,
    Survivors,
    UnsafeRoundError,
)
from nufed.common.unsigned_roster import roster_bytes, unsigned_roster

Answer = TypeVar("Answer")

SEED = 32
_LIVE: dict[tuple[str, bytes], tuple[int, SecureClient]] = {}
"""Rounds that this process made, with the requests they have answered, by client and seed."""

_MOST_LIVE = 4096
_LOCK = threading.Lock()


@dataclass(frozen=True)
class RoundState:
    """What is written down of a client's round.

    Attributes:
        seed: of all secrets of the round; empty where no round is open.
        task: what the server asked for.
        roster: the clients that this client believes to exist, see `roster_bytes`.
        requests: what the server has asked since, stage by stage.
        signatures: each made so far, behind the hash of what was signed: an ECDSA signature is another one every time.
        run_id: of the last round in which this client gave its integers away.
        last_round: its number; 0 if there was none.
    """

    seed: bytes = field(default=b"", repr=False)
    task: bytes = b""
    roster: bytes = b""
    requests: tuple[bytes, ...] = ()
    signatures: tuple[bytes, ...] = ()
    run_id: str = ""
    last_round: int = 0


@dataclass(frozen=True)
class _RememberingIdentity(Identity):
    """An identity that signs the same content with the same bytes, as it did before."""

    made: dict[bytes, bytes] = field(default_factory=dict)

    def sign(self, label: str, *content: bytes) -> bytes:
        """Return the signature that was made before, or a new one."""
        digest = hashlib.sha256(b"".join(len(each).to_bytes(8) + each for each in (label.encode(), *content))).digest()
        if digest not in self.made:
            self.made[digest] = super().sign(label, *content)
        return self.made[digest]


class RoundMemory:
    """Holds a client's round while one message is answered; `state` is what is to be kept afterwards.

    Args:
        name: the client's.
        key: with which it signs.
        state: what was kept at the last message.
        view: SHA-256 of the run's options as this client was told them.
    """

    def __init__(self, name: str, key: ec.EllipticCurvePrivateKey, state: RoundState, view: bytes = bytes(32)) -> None:
        self.state, self._view = state, view
        signed = dict(zip(state.signatures[::2], state.signatures[1::2], strict=True))
        self._identity = _RememberingIdentity(name, key, signed)

    def advertise(self, task: SecureTask, roster: Roster) -> AdvertisedKeys:
        """Return this client's keys of a new round.

        Raises:
            UnsafeRoundError: it has masked in that round or a later one, or the task protects too little.
        """
        if task.run_id == self.state.run_id and task.round <= self.state.last_round:
            raise UnsafeRoundError(
                f"Expected a round after {self.state.last_round}, in which this client has given its model away, got "
                f"round {task.round}. Two sums of one round could tell what one client's part is: start the next."
            )
        if self.state.seed and self.state.task == task.to_bytes() and len(self.state.requests) == 0:
            return self._client().advertise()
        _forget(self._key)
        fresh = {"seed": os.urandom(SEED), "task": task.to_bytes(), "roster": roster_bytes(roster)}
        self.state = replace(self.state, **fresh, requests=(), signatures=())  # type: ignore[arg-type]
        self._identity.made.clear()
        return self._answered(SecureClient.advertise)

    def share(self, request: bytes) -> EncryptedShares:
        """Return this client's encrypted shares; see `SecureClient.share`."""
        keys = CohortKeys.from_bytes(request)
        return self._answered(lambda client: client.share(keys), request, stage=0)

    def check_ready(self, encoding: EncodingTask, model: bytes) -> None:
        """Refuse to train for a round that this client is not in, or from another model or grid than was promised.

        Args:
            encoding: how the server asks for integers.
            model: SHA-256 of the model that the server sent.

        Raises:
            UnsafeRoundError: with the reason.
        """
        task = SecureTask.from_bytes(self._open().task)
        if encoding.digest != task.options_digest or encoding.total_weight != task.total_weight:
            raise UnsafeRoundError(
                "Expected the encoding that all clients of the round were promised, got another. Refuse this server."
            )
        if model != task.model_digest:  # before training: that it failed would tell of this client's examples
            raise UnsafeRoundError(
                "Expected the model that all clients of the round were promised, got another one. Refuse this server."
            )
        if len(self.state.requests) not in (1, 2):
            raise UnsafeRoundError("Expected a round in which this client has shared its secrets. Start another round.")

    def mask(self, request: bytes, sums: Mapping[str, Tensor], weight: int, model_digest: bytes) -> MaskedInput:
        """Return a client's integers under masks, which are added in place; see `SecureClient.mask`."""
        delivered = DeliveredShares.from_bytes(request)
        masked = self._answered(lambda client: client.mask(delivered, sums, weight, model_digest), request, stage=1)
        task = SecureTask.from_bytes(self.state.task)
        self.state = replace(self.state, run_id=task.run_id, last_round=task.round)
        return masked

    def confirm(self, request: bytes) -> Confirmation:
        """Return this client's signature over the list of survivors; see `SecureClient.confirm`."""
        survivors = Survivors.from_bytes(request)
        return self._answered(lambda client: client.confirm(survivors), request, stage=2)

    def reveal(self, request: bytes) -> RevealedShares:
        """Return the shares that unmask the sum, and drop the round's secrets; see `SecureClient.reveal`."""
        confirmed = ConfirmedSurvivors.from_bytes(request)
        revealed = self._answered(lambda client: client.reveal(confirmed), request, stage=3)
        _forget(self._key)
        self.state = RoundState(run_id=self.state.run_id, last_round=self.state.last_round)
        return revealed

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key that this client's signatures are checked by."""
        return self._identity.key.public_key()

    @property
    def _key(self) -> tuple[str, bytes]:
        return self._identity.name, self.state.seed

    def _open(self) -> RoundState:
        if not self.state.seed:
            raise UnsafeRoundError(
                "Expected a round of secure aggregation that this client is in, but it has none: it was started again "
                "since, or joined later. It takes part in the next round."
            )
        return self.state

    def _answered(
        self, ask: Callable[[SecureClient], Answer], request: bytes | None = None, *, stage: int = 0
    ) -> Answer:
        """Return the answer to a request, and keep both; the same request again is not kept twice.

        Raises:
            UnsafeRoundError: it is not this stage's turn.
        """
        state = self._open()
        client = self._client()
        answer = ask(client)
        if request is not None and len(state.requests) == stage:
            state = replace(state, requests=(*state.requests, request))
        pairs = tuple(part for pair in self._identity.made.items() for part in pair)
        self.state = replace(state, signatures=pairs)
        with _LOCK:
            _LIVE[self._key] = max(len(self.state.requests), _LIVE.get(self._key, (0, None))[0]), client
            while len(_LIVE) > _MOST_LIVE:
                del _LIVE[next(iter(_LIVE))]
        return answer

    def _client(self) -> SecureClient:
        """Return the open round: the one that this process holds, or one made again from what was kept."""
        state = self._open()
        with _LOCK:
            answered, client = _LIVE.get(self._key, (-1, None))
        if client is not None and answered >= len(state.requests):  # more: the state is older than what was answered
            return client
        task = SecureTask.from_bytes(state.task)
        roster, entropy = unsigned_roster(state.roster), _Stream(state.seed)
        client = SecureClient(task, self._identity, roster, view=self._view, entropy=entropy)
        client.advertise()
        for stage, request in enumerate(state.requests):
            if stage == 0:
                client.share(CohortKeys.from_bytes(request))
            elif stage == 1:  # which integers were masked does not matter to what follows
                client.mask(DeliveredShares.from_bytes(request), {}, 1, task.model_digest)
            elif stage == 2:
                client.confirm(Survivors.from_bytes(request))
        return client


class _Stream:
    """Returns bytes that nobody can guess who does not know the seed: SHAKE-256 of it and of a counter.

    Args:
        seed: 32 bytes of the operating system's generator.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed, self._count = seed, 0

    def __call__(self, size: int) -> bytes:
        """Return the next bytes."""
        self._count += 1
        return hashlib.shake_256(b"nufed round" + self._seed + self._count.to_bytes(8)).digest(size)


def _forget(key: tuple[str, bytes]) -> None:
    with _LOCK:
        _, client = _LIVE.pop(key, (0, None))
    if client is not None:
        client.forget()
