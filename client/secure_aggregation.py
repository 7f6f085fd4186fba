"""A client's answers in a round of secure aggregation, of which the server can read no more than the sum.

What it refuses is answered with the reason, and ends neither the client nor a simulation: the round goes on without it.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from nufed.client.attending import attend
from nufed.client.secure_rounds import RoundMemory, RoundState
from nufed.client.secure_trust import IDENTITY_KEY, REQUIRED, believed_roster, own_key
from nufed.client.workplace import Workplace
from nufed.common.config import RunConfig
from nufed.common.encoding_task import EncodingTask, model_digest
from nufed.common.errors import ConfigError, PeerError, WireError
from nufed.common.params import Params
from nufed.common.privacy.secure import SecureTask
from nufed.common.secure_wire import (
    CONFIRM,
    IDENTITY,
    KEYS,
    SHARES,
    UNMASK,
    MaskedReply,
    is_secure,
    read_told,
    told_records,
)
from nufed.common.unsigned_roster import encoded_key
from nufed.common.wire import CONFIG, TrainReply

_STATE, _EPHEMERAL = "secure-aggregation", "secure-identity"
_REFUSED = 2
"""Flower's number of an error that the client's app is the cause of."""

_log = logging.getLogger("nufed.private")

Stage = Callable[[Message, Context], Message]


def refuse_in_the_clear(config: RunConfig, node_config: Mapping[str, Any]) -> None:
    """Refuse to take part without secure aggregation where whoever runs this client requires it.

    Raises:
        ConfigError: the run has none.
    """
    if node_config.get(REQUIRED) and not config.privacy.secure_aggregation:
        error = ConfigError(
            "This client takes part with secure aggregation alone (--require-secure-aggregation), and the server asks "
            "for none. Ask its operator to start it with --secure-aggregation, or leave the option out here."
        )
        error.sendable = True
        raise error


def check_train_message(message: Message, place: Workplace, node_config: Mapping[str, Any]) -> None:
    """Refuse to send a model in the clear where nobody is to see it.

    Raises:
        WireError: the message asks for one, in a run whose clients were promised secure aggregation.
        ConfigError: the run has none, and this client requires it.
    """
    refuse_in_the_clear(place.config, node_config)
    if place.config.privacy.secure_aggregation and not is_secure(message.content):
        raise WireError(
            "expected a round of secure aggregation, as the run's options say, but was asked for this client's model "
            "itself; it is not sent"
        )


def _answering(stage: Callable[[Message, "_Site"], RecordDict]) -> Stage:
    """Return a handler that answers with a stage's records, or with why this client refuses them."""

    @functools.wraps(stage)
    def handle(message: Message, context: Context) -> Message:
        place = attend(message, context)
        refuse_in_the_clear(place.config, context.node_config)
        return _refusing(message, lambda: stage(message, _Site(place.data.client_id, context)))

    return handle


def _refusing(message: Message, answer: Callable[[], RecordDict]) -> Message:
    try:
        return Message(answer(), reply_to=message)
    except (WireError, PeerError) as error:
        _log.warning("secure aggregation: %s", error)
        return Message(Error(_REFUSED, str(error)), reply_to=message)


class _Site:
    """Holds a client's name, keys and round while a message is answered."""

    def __init__(self, name: str, context: Context) -> None:
        self.name, self._context = name, context
        self.key = own_key(context.node_config) or self._ephemeral_key()
        # A server that told all but one client to train with step size 0 would learn the one's model from the sum.
        view = hashlib.sha256(json.dumps(sorted(context.run_config.items())).encode()).digest()
        self.rounds = RoundMemory(name, self.key, self._state(), view)

    def keep(self) -> None:
        """Write the round into the node's state, for the next message."""
        state = self.rounds.state
        self._context.state[_STATE] = ConfigRecord(
            {**vars(state), "requests": list(state.requests), "signatures": list(state.signatures)}
        )

    def roster(self, records: RecordDict) -> Any:
        """Return the roster of a message, if it may be believed here."""
        return believed_roster(records.config_records[CONFIG], self._context.node_config)

    def _state(self) -> RoundState:
        kept = self._context.state.config_records.get(_STATE)
        if kept is None:
            return RoundState()
        values = {**kept, "requests": tuple(kept["requests"]), "signatures": tuple(kept["signatures"])}  # type: ignore[arg-type]
        return RoundState(**values)  # type: ignore[arg-type]

    def _ephemeral_key(self) -> ec.EllipticCurvePrivateKey:
        """Return a key of this run alone, for a client that has no key of its own."""
        kept = self._context.state.config_records.get(_EPHEMERAL)
        if kept is not None:
            made = serialization.load_der_private_key(cast("bytes", kept[IDENTITY_KEY]), None)
            return cast("ec.EllipticCurvePrivateKey", made)
        key = ec.generate_private_key(ec.SECP384R1())
        encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
        content = key.private_bytes(encoding, form, serialization.NoEncryption())
        self._context.state[_EPHEMERAL] = ConfigRecord({IDENTITY_KEY: content})
        return key


@_answering
def identity(message: Message, site: _Site) -> RecordDict:  # noqa: ARG001 - every stage's signature
    """Answer with this client's public key, for a server without a signed roster."""
    return told_records(encoded_key(site.key.public_key()))


@_answering
def keys(message: Message, site: _Site) -> RecordDict:
    """Answer with this client's signed keys of the round."""
    task = SecureTask.from_bytes(read_told(message.content))
    made = site.rounds.advertise(task, site.roster(message.content))
    site.keep()
    return told_records(made.to_bytes())


@_answering
def shares(message: Message, site: _Site) -> RecordDict:
    """Answer with this client's shares, encrypted to its peers."""
    made = site.rounds.share(read_told(message.content))
    site.keep()
    return told_records(made.to_bytes())


@_answering
def confirm(message: Message, site: _Site) -> RecordDict:
    """Answer with this client's signature over the list of those in the sum."""
    made = site.rounds.confirm(read_told(message.content))
    site.keep()
    return told_records(made.to_bytes())


@_answering
def unmask(message: Message, site: _Site) -> RecordDict:
    """Answer with the shares that unmask the sum of those that were signed for."""
    made = site.rounds.reveal(read_told(message.content))
    site.keep()
    return told_records(made.to_bytes())


STAGES: dict[str, Stage] = {IDENTITY: identity, KEYS: keys, SHARES: shares, CONFIRM: confirm, UNMASK: unmask}
"""Queries of a round by their names."""


def masked(message: Message, context: Context, sent: Params, train: Callable[[], TrainReply]) -> Message:
    """Answer with the client's model as integers under masks.

    Args:
        message: asks for it.
        context: the node's.
        sent: w_k.
        train: trains, which is not done for a round that this client is not in.
    """

    def answer() -> RecordDict:
        task = EncodingTask.from_config(message.content.config_records[CONFIG])
        site = _Site(attend(message, context).data.client_id, context)
        digest = model_digest(sent)
        site.rounds.check_ready(task, digest)
        reply = train()
        try:
            sums, weight = task.encode(sent, reply.params, reply.num_examples)
        except WireError as error:  # whose words have numbers of this client's model
            _log.warning("secure aggregation: %s", error)
            raise WireError("this client's model is not finite or beyond max-growth; it is not sent") from error
        made = site.rounds.mask(read_told(message.content), sums, weight, digest)
        site.keep()
        return MaskedReply(made.to_bytes(), made.arrays, reply.num_examples, reply.metrics).to_records()

    return _refusing(message, answer)
