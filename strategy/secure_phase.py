"""A training phase of whose replies the server reads no more than the sum: five exchanges in place of one.

    keys      each client makes keys for this round          query.secure_keys
    shares    and shares its secrets among its peers         query.secure_shares
    train     w_k goes out, integers under masks come back   train
    confirm   who is in the sum is signed by each client     query.secure_confirm
    unmask    and the shares that remove the masks come      query.secure_unmask

Who is lost before its integers came is left out; who is lost afterwards is in the sum. The protocol itself is
nufed.common.privacy.secure; here it meets clients that are late, fail, or answer anything.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeVar, cast

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from nufed.common.config import PrivacyConfig, RunConfig
from nufed.common.encoding_task import EncodingTask, model_digest
from nufed.common.errors import ConfigError, PeerError, WireError
from nufed.common.message_schema import NUM_EXAMPLES, MetricValue
from nufed.common.params import Params
from nufed.common.privacy.rules import check_strategy_privacy
from nufed.common.privacy.secure import (
    AdvertisedKeys,
    Confirmation,
    DeliveredShares,
    EncryptedShares,
    MaskedInput,
    RevealedShares,
    Roster,
    RoundFailedError,
    SecureServer,
    plan_task,
)
from nufed.common.secure_wire import (
    CONFIRM,
    IDENTITY,
    KEYS,
    ROSTER,
    SHARES,
    SIGNED,
    TOLD,
    TRAIN,
    UNMASK,
    MaskedReply,
    read_told,
    told_records,
)
from nufed.common.unsigned_roster import decoded_key, roster_bytes
from nufed.common.untrusted import printable, shown
from nufed.common.wire import CONFIG
from nufed.strategy.aggregation import SumAggregation
from nufed.strategy.exchange import MakeQuorum, describe_error, iter_replies, signed_roster, time_to_live
from nufed.strategy.known_clients import Member
from nufed.strategy.phase import AveragingRule, Outgoing, TrainingPhase
from nufed.strategy.results import RoundResult, SecureOutcome
from nufed.strategy.telling import Telling

SHORT_SHARE = 0.1
"""Share of a round's time that clients have at most for each exchange beside training."""

_NO_STAGE = "No query function registered"  # what flwr.clientapp.ClientApp raises
_OLD = "its app knows no secure aggregation: update NuFed there"

_log = logging.getLogger("nufed.strategy")

Lost = Literal["rejected", "failed", "missing"]
_Told = TypeVar("_Told", AdvertisedKeys, EncryptedShares, Confirmation, RevealedShares)
Take = Callable[[str, bytes], None]
"""Takes what a client answers; raises WireError to refuse it."""


@dataclass
class SecureAggregation:
    """How secure aggregation is done in a run; holds which keys clients have told where no authority vouches for them.

    Attributes:
        threshold: share of a round's clients, of each one's neighbours where it has fewer, that must stay; above 0.5.
        neighbours: clients that each client shares masks with; 0 is all of up to 100, of more what the threshold needs.
        run_id: of this start of a run; another one after a restart.
    """

    threshold: float = 0.67
    neighbours: int = 0
    run_id: str = field(default_factory=lambda: secrets.token_hex(16))
    told_keys: dict[int, bytes] = field(default_factory=dict, repr=False)


def secure_aggregation(privacy: PrivacyConfig) -> SecureAggregation | None:
    """Return how a run's models are summed in secret; None if they are not."""
    if not privacy.secure_aggregation:
        return None
    return SecureAggregation(privacy.secure_threshold, privacy.secure_neighbours)


def check_secure_options(aggregation: str) -> None:
    """Refuse options of a strategy that contradict secure aggregation.

    Raises:
        ConfigError: with the reason and what to change.
    """
    options = {"privacy.secure-aggregation": True, "federation.aggregation": aggregation}
    check_strategy_privacy(RunConfig().updated(options))


class Ask(Protocol):
    """Puts a stage's question to clients, and returns those that answered it well."""

    def __call__(self, stage: str, names: Iterable[str], told: bytes, take: Take, **more: bytes | int) -> list[str]:
        """Ask clients by name; `more` goes into the message's config."""


class SecureTrainingPhase(TrainingPhase):
    """Holds one round's state of the protocol beside that of the training phase; `exchange` is called, then `close`."""

    def __init__(  # noqa: PLR0913 - as a training phase, and how
        self,
        outgoing: Outgoing,
        asked: Mapping[str, Member],
        telling: Telling,
        rule: AveragingRule,
        sent: Params,
        *,
        how: SecureAggregation,
    ) -> None:
        """Open a round; `sent` is w_k."""
        super().__init__(outgoing, asked, telling, rule, sent)
        self._outgoing, self._how = outgoing, how
        self._each, self._bytes_down = self._bytes_down // max(1, len(asked)), 0
        highest = 1 if rule.weighting == "uniform" else self._limit or self._total
        clip = rule.private.terms.clip if rule.private else 0.0
        self._encoding = EncodingTask(max(1, self._total), highest, rule.max_growth, clip)
        self._server: SecureServer | None = None
        self._masked: set[str] = set()
        self._dropped: dict[str, int] = {}
        self._late: dict[str, str] = {}
        self._seconds: dict[str, float] = {}
        self._protocol_up = self._protocol_down = 0
        self._failure = ""

    def exchange(self, grid: Grid, timeout: float, quorum: MakeQuorum) -> None:
        """Carry out the protocol; nothing that a client sends, and no number of clients that are lost, makes it raise.

        Args:
            grid: any Flower Grid.
            timeout: seconds for all of it.
            quorum: how many masked models of so many are enough.
        """
        deadline, short = time.monotonic() + timeout, SHORT_SHARE * timeout

        def left(reserved: int = 0) -> float:
            return max(0.0, deadline - time.monotonic() - reserved * short)

        def ask(stage: str, names: Iterable[str], told: bytes, take: Take, **more: bytes | int) -> list[str]:
            seconds = left() if stage == UNMASK else min(short, left())
            return self._ask(grid, stage, names, told_records(told, more), take, seconds)

        try:
            server, roster = self._prepared(ask, signed_roster(grid))
            ask(KEYS, self._open(), server.task.to_bytes(), _taking(AdvertisedKeys, server.add_keys), **roster)
            ask(SHARES, self._open(), server.close_keys().to_bytes(), _taking(EncryptedShares, server.add_shares))
            self._train(grid, server.close_shares(), left(2), quorum)
            confirm = _taking(Confirmation, server.add_confirmation)
            signed = ask(CONFIRM, sorted(self._masked), server.close_masked().to_bytes(), confirm)
            confirmed = server.close_confirmations().to_bytes()
            ask(UNMASK, signed, confirmed, _taking(RevealedShares, server.add_revealed))
            unmasked = server.unmask()
            cast("SumAggregation", self._aggregation).add_sums(unmasked.sums, unmasked.weight)
        except (RoundFailedError, ConfigError, PeerError) as failure:
            self._failure = str(failure)

    def close(self) -> RoundResult:
        """Return the round's result, with the reason where the protocol failed.

        w_{k+1} is w_k then; with differential privacy w_k and noise, as in a round that nobody answers.
        """
        if self._failure:
            left = "adds noise alone to the model" if self.private else "leaves the model as it was"
            reason = f"secure aggregation failed, and the round {left}: {self._failure}"
            self._record.reject_all(reason)
            for client_id in self._open():
                self._record.leave_out(client_id, "rejected", reason)
        return replace(super().close(), secure=self._outcome())

    def _outcome(self) -> SecureOutcome:
        return SecureOutcome(
            cohort=len(self._asked),
            threshold=self._server.task.threshold if self._server else 0,
            summed=0 if self._failure else len(self._masked),
            dropped=dict(self._dropped),
            late=dict(sorted(self._late.items())),
            seconds=dict(self._seconds),
            bytes_up=self._protocol_up,
            bytes_down=self._protocol_down,
            reason=self._failure,
        )

    def _prepared(self, ask: Ask, signed: tuple[bytes, Roster] | None) -> tuple[SecureServer, dict[str, bytes | int]]:
        """Return the server's side of the protocol, and the roster as all clients are sent it.

        Raises:
            ConfigError: there are too few clients, or they have not said how many examples they have.
            RoundFailedError: two clients have one key.
        """
        if self._rule.weighting == "examples" and self._limit is None:
            raise ConfigError(
                "Expected clients that have said how many examples they have, which weights follow from. Set "
                "federation.weighting to uniform, or use clients that describe themselves."
            )
        task = plan_task(
            run_id=self._how.run_id,
            round=self.round,
            num_asked=len(self._asked),
            total_weight=self._encoding.total_weight,
            model_digest=model_digest(self._sent),
            options_digest=self._encoding.digest,
            threshold_share=self._how.threshold,
            neighbours=self._how.neighbours,
        )
        content, roster = signed or self._told_roster(ask)
        self._server = SecureServer(task, roster, self._encoding.sizes(self._sent))
        return self._server, {ROSTER: content, SIGNED: int(signed is not None)}

    def _told_roster(self, ask: Ask) -> tuple[bytes, Roster]:
        """Return the keys that clients have told, asking those that have not been asked yet."""
        known = self._how.told_keys

        def take(client_id: str, told: bytes) -> None:
            decoded_key(told)
            known[self._asked[client_id].node_id] = told

        ask(IDENTITY, [name for name, member in self._asked.items() if member.node_id not in known], b"", take)
        try:
            roster = Roster({name: decoded_key(known[self._asked[name].node_id]) for name in self._open()})
        except PeerError as error:  # two clients with one key
            raise RoundFailedError(str(error)) from error
        return roster_bytes(roster), roster

    def _ask(  # noqa: PLR0913 - one place that asks
        self, grid: Grid, stage: str, names: Iterable[str], records: RecordDict, take: Take, timeout: float
    ) -> list[str]:
        """Put a stage's question to clients, and return those that answered it well; the others are lost.

        Args:
            grid: any Flower Grid.
            stage: name of the query.
            names: of the clients asked.
            records: what each is sent.
            take: takes an answer; raises WireError to refuse it.
            timeout: seconds.
        """
        started, ttl, kind = time.perf_counter(), time_to_live(timeout), f"{MessageType.QUERY}.{stage}"
        nodes = {self._asked[name].node_id: name for name in names}
        messages = [Message(RecordDict(dict(records)), node, kind, ttl=ttl, group_id=str(self.round)) for node in nodes]
        self._protocol_down += len(messages) * _size(records)
        well: list[str] = []
        for node_id, reply in iter_replies(grid, messages, timeout):
            client_id = nodes.pop(node_id, None) if node_id is not None else None
            if client_id is None:
                self._record.strays += 1
                continue
            outcome, reason = self._answered(client_id, reply, take)
            if outcome is None:
                well.append(client_id)
            else:
                self._lose(client_id, stage, outcome, reason)
        for client_id in nodes.values():
            self._lose(client_id, stage, "missing", f"no answer within {timeout:.3g} s")
        self._seconds[stage] = time.perf_counter() - started
        return sorted(well)

    def _answered(self, client_id: str, reply: Message, take: Callable[[str, bytes], None]) -> tuple[Lost | None, str]:
        """Take an answer; return what is wrong with it and why, or None."""
        if reply.has_error():
            is_old = _NO_STAGE in (reply.error.reason or "")
            return "failed", _OLD if is_old else describe_error(reply)
        try:
            told = read_told(reply.content)
            self._protocol_up += len(told)
            take(client_id, told)
        except WireError as error:
            return "rejected", str(error)
        return None, ""

    def _lose(self, client_id: str, stage: str, outcome: Lost, reason: str) -> None:
        """Note that a client is lost; where its model is in the sum already, it stays there."""
        self._dropped[stage] = self._dropped.get(stage, 0) + 1
        reason = f"{stage.replace('_', '-')}: {printable(reason)}"
        if client_id in self._masked:
            self._late[client_id] = reason
            _log.warning("Client %s is in the sum, but did not help to unmask it (%s).", client_id, reason)
        else:
            self._record.leave_out(client_id, outcome, reason)

    def _open(self) -> list[str]:
        return [client_id for client_id in self._asked if self._record.is_open(client_id)]

    def _train(self, grid: Grid, delivered: Mapping[str, DeliveredShares], timeout: float, quorum: MakeQuorum) -> None:
        """Have clients train and send their integers under masks, which are added up as they come."""
        started = time.perf_counter()
        asked = {name: self._asked[name] for name in delivered}
        self.messages = self._outgoing.messages(asked)
        config = self._encoding.to_config()
        for message, shares in zip(self.messages, delivered.values(), strict=True):
            message.content.config_records[CONFIG].update({TOLD: (told := shares.to_bytes()), **config})
            self._protocol_down += len(told)
        self._bytes_down = len(self.messages) * self._outgoing.num_bytes()
        self.take_stream(grid, timeout, quorum)
        self._dropped |= {TRAIN: lost} if (lost := len(asked) - len(self._masked)) else {}
        self._seconds[TRAIN] = time.perf_counter() - started

    def _accept(self, client_id: str, content: RecordDict) -> dict[str, MetricValue]:
        assert self._server is not None  # noqa: S101 - it was made before anybody was asked
        reply = MaskedReply.from_records(content, self._encoding.sizes(self._sent))
        if self._rule.weighting == "examples":
            self._check_examples(client_id, reply.num_examples)
        masked = MaskedInput.from_bytes(reply.told, reply.sums)
        _check_sender(masked.name, client_id)
        self._server.add_masked(masked)
        self._protocol_up += len(reply.told)
        self._masked.add(client_id)
        return {NUM_EXAMPLES: reply.num_examples, **reply.metrics}


def _taking(kind: type[_Told], add: Callable[[_Told], None]) -> Take:
    """Return what takes a stage's answers of one kind, each in its sender's own name."""

    def take(client_id: str, told: bytes) -> None:
        message = kind.from_bytes(told)
        _check_sender(message.name, client_id)
        add(message)

    return take


def _check_sender(name: str, client_id: str) -> None:
    if name != client_id:
        raise WireError(f"the client answers in the name of {shown(name)}; expected its own")


def _size(records: RecordDict) -> int:
    """Return the bytes of the protocol in a message."""
    return sum(len(value) for value in records.config_records[CONFIG].values() if isinstance(value, bytes))
