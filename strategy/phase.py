"""One phase, training or evaluation, from the messages that open it to the result that closes it."""

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from nufed.common.errors import WireError
from nufed.common.events.event import PhaseName
from nufed.common.message_schema import NUM_EXAMPLES, CurveShape, MetricValue
from nufed.common.model_arrays import check_params
from nufed.common.params import Params, largest_magnitude
from nufed.common.wire import ARRAYS, CONFIG, SERVER_ROUND, EvaluateReply, TrainReply
from nufed.strategy.aggregation import Aggregation, find_aggregation
from nufed.strategy.exchange import MakeQuorum, iter_replies, simulated_now, time_to_live
from nufed.strategy.known_clients import Member
from nufed.strategy.phase_record import PhaseRecord
from nufed.strategy.private_rounds import PrivateRound
from nufed.strategy.results import EvaluatedGroup, EvaluationResult, RoundResult, Weighting
from nufed.strategy.robust_options import RobustOptions
from nufed.strategy.server_step import ServerOptimizer, ServerState, next_model
from nufed.strategy.telling import Telling
from nufed.strategy.weights import DEFAULT_MAX_WEIGHT, weight_limit

UNANNOUNCED_EXAMPLES = 2**20
"""Largest `num-examples` believed of a client that did not say beforehand how many it has."""

_log = logging.getLogger("nufed.strategy")


@dataclass(frozen=True)
class AveragingRule:
    """How replies are averaged, and what becomes of their mean.

    Attributes:
        weighting: weights, `uniform` or `examples`.
        max_growth: at which a reply counts as diverged.
        server_lr: ε, how far w_k moves towards the mean.
        max_weight: medians of `announced` that a client may weigh.
        announced: examples of each client that takes part and has said how many it has.
        aggregation: a key of `AGGREGATION_RULES`.
        robust: what a robust rule is told.
        private: of a round with differential privacy, whose mean is another.
        optimizer: what becomes of the mean.
        server_state: of that optimizer after the round before.
    """

    weighting: Weighting
    max_growth: float
    server_lr: float = 1.0
    max_weight: float = DEFAULT_MAX_WEIGHT
    announced: tuple[int, ...] = ()
    aggregation: str = "mean"
    robust: RobustOptions = field(default_factory=RobustOptions)
    private: PrivateRound | None = None
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    server_state: ServerState = field(default_factory=dict)

    def start(self, sent: Params, total_weight: int) -> Aggregation:
        """Return a round's aggregation without replies; `total_weight` bounds the sum of weights."""
        if self.private:
            return self.private.mean(sent)
        return find_aggregation(self.aggregation)(sent, total_weight, self.max_growth, self.robust)


@dataclass(frozen=True)
class Outgoing:
    """What every client asked in a phase is sent.

    Attributes:
        message_type: `train` or `evaluate`.
        round: k.
        arrays: w_k.
        config: the caller's options; each message has its own copy, with `server-round` added.
        timeout: seconds that replies are waited for; None leaves that to a loop that is not ours.
    """

    message_type: str
    round: int
    arrays: ArrayRecord
    config: ConfigRecord
    timeout: float | None = None

    def messages(self, asked: Mapping[str, Member]) -> list[Message]:
        """Return one message for each client, each with its own records around the same arrays."""
        ttl = None if self.timeout is None else time_to_live(self.timeout)
        return [
            Message(self._content(), member.node_id, self.message_type, ttl=ttl, group_id=str(self.round))
            for member in asked.values()
        ]

    def num_bytes(self) -> int:
        """Return the size of the arrays in one message."""
        return sum(len(array.data) for array in self.arrays.values())

    def _content(self) -> RecordDict:
        # ArrayRecord(dict) would make new Arrays, each of which Flower hashes again for each client.
        arrays = ArrayRecord()
        for name, array in self.arrays.items():
            arrays[name] = array
        config: dict[str, Any] = {**copy.deepcopy(dict(self.config)), SERVER_ROUND: self.round}
        return RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(config)})


class Phase(ABC):
    """Holds the messages of one phase and what has come of them, until the phase is closed.

    Attributes:
        round: k.
        messages: one for each client asked.
        name: what the phase is called in events.
    """

    name: ClassVar[PhaseName]

    def __init__(self, outgoing: Outgoing, asked: Mapping[str, Member], telling: Telling, max_weight: float) -> None:
        """Open a phase.

        Args:
            outgoing: what is sent.
            asked: whom to, by client id.
            telling: see `PhaseRecord`.
            max_weight: medians that a client may weigh in averages of metrics over examples.
        """
        self.round = outgoing.round
        self.messages = outgoing.messages(asked)
        self._timeout = outgoing.timeout
        self._telling = telling
        self._max_weight = max_weight
        self._is_full = False
        self._simulated_seconds: float | None = None
        each = outgoing.num_bytes()
        self._bytes_down = len(self.messages) * each
        nodes = {member.node_id: client_id for client_id, member in asked.items()}
        self._record = PhaseRecord(nodes, telling, phase=self.name, round_number=self.round, bytes_down=each)

    def take(self, node_id: int | None, reply: Message) -> bool:
        """Enter one reply, and return whether it is used; nothing that a client sends makes this raise."""
        return self._record.take(node_id, reply, self._accept)

    def take_stream(self, grid: Grid, timeout: float, make_quorum: MakeQuorum) -> None:
        """Send the messages and take the replies as they come; nothing that a client sends makes this raise.

        Args:
            grid: any Flower Grid.
            timeout: seconds.
            make_quorum: returns how many replies of so many clients are enough.
        """
        quorum, begun = make_quorum(len(self.messages)), simulated_now(grid)
        for node_id, reply in iter_replies(grid, self.messages, timeout, quorum):
            if self.take(node_id, reply) and quorum:
                quorum.note_usable()
            del reply  # a model; it need not outlive the wait for the next one
        self._is_full = quorum is not None and quorum.is_full
        if begun is not None:
            self._simulated_seconds = ((simulated_now(grid) or 0) - begun) / 1e6

    @abstractmethod
    def _accept(self, client_id: str, content: RecordDict) -> dict[str, MetricValue]:
        """Return a reply's metrics.

        Raises:
            WireError: the reply is refused.
        """

    def _close(self) -> dict[str, Any]:
        """Return the attributes of a `PhaseResult`; who has not answered is missing."""
        record = self._record
        record.close(self._timeout, is_full=self._is_full)
        return {
            "round": self.round,
            "counts": record.counts,
            "problems": record.problems,
            "client_metrics": dict(sorted(record.client_metrics.items())),
            "strays": record.strays,
            "bytes_down": self._bytes_down,
            "bytes_up": record.bytes_up,
            "seconds": record.seconds,
            "max_weight": self._max_weight,
            "dropped": record.dropped,
            "simulated_seconds": self._simulated_seconds,
        }


class TrainingPhase(Phase):
    """Holds the running mean of one round, and what each client may weigh in it.

    Where nobody said beforehand how many examples it has, replies weighted by them are held until the round closes:
    only then is their median known.

    Attributes:
        outgrown: clients that reported more examples than they had announced.
        learned: examples of clients that had announced none, by client id.
        needed: usable replies with which the round ends, though more clients were asked.
        private: of a round with differential privacy.
    """

    name = "training"

    def __init__(
        self,
        outgoing: Outgoing,
        asked: Mapping[str, Member],
        telling: Telling,
        rule: AveragingRule,
        sent: Params,
    ) -> None:
        """Open a round; `sent` is w_k."""
        super().__init__(outgoing, asked, telling, rule.max_weight)
        self.outgrown: set[str] = set()
        self.needed = len(asked)
        self.learned: dict[str, int] = {}
        self.private = rule.private
        self._rule = rule
        self._sent = sent
        self._asked = dict(asked)
        self._most = {client_id: most_examples(member) for client_id, member in asked.items()}
        self._limit = weight_limit(rule.announced, rule.max_weight) if rule.announced else None
        self._held: dict[str, TrainReply] = {}
        self._total = self._largest_weight(UNANNOUNCED_EXAMPLES if self._limit is None else self._limit)
        self._aggregation = rule.start(sent, self._total)

    def _largest_weight(self, largest: int) -> int:
        """Return a bound of the sum of weights, of which no client has more than `largest`."""
        if self._rule.weighting == "uniform":
            return len(self._asked)
        return sum(min(most, largest) for most in self._most.values())

    def exchange(self, grid: Grid, timeout: float, quorum: MakeQuorum) -> None:
        """Send the model and take the replies as they come; nothing that a client sends makes this raise.

        Args:
            grid: any Flower Grid.
            timeout: seconds.
            quorum: returns how many replies of so many clients are enough.
        """
        self.take_stream(grid, timeout, quorum)

    def close(self) -> RoundResult:
        """Return the round's result; w_{k+1} is w_k if no usable reply came, or too few for the rule.

        Too few replies are all rejected, with that reason. With differential privacy w_{k+1} is another model whoever
        answered.

        Raises:
            ModelError: the server step is not finite.
        """
        limit = weight_limit((reply.num_examples for reply in self._held.values()), self._rule.max_weight)
        for client_id, reply in sorted(self._held.items()):
            self._aggregation.fold(reply.params, self._capped(client_id, reply.num_examples, limit), client_id)
        if reason := self._aggregation.shortfall():
            self._record.reject_all(f"{reason}: the round leaves the model as it was")
        mean = self._aggregation.result()
        assert mean is None or all(math.isfinite(largest_magnitude(w)) for w in mean.values())  # noqa: S101 - our bug
        params, state = (self._sent, self._rule.server_state) if mean is None else self._stepped(mean)
        return RoundResult(**self._close(), params=params, server_state=state)

    def _stepped(self, mean: Params) -> tuple[Params, ServerState]:
        rule = self._rule
        return next_model(self._sent, mean, rule.server_lr, rule.optimizer, rule.server_state)

    def _accept(self, client_id: str, content: RecordDict) -> dict[str, MetricValue]:
        reply = self._based(client_id, TrainReply.from_records(content, self._sent))
        if self._rule.weighting == "uniform":
            self._aggregation.fold(reply.params, client_id=client_id)
        else:
            self._check_examples(client_id, reply.num_examples)
            if self._limit is None:
                check_params(reply.params, self._sent, self._aggregation.limits)
                self._held[client_id] = reply
            else:
                self._aggregation.fold(
                    reply.params, self._capped(client_id, reply.num_examples, self._limit), client_id
                )
            if not self._asked[client_id].announced:
                self.learned[client_id] = reply.num_examples
        return {NUM_EXAMPLES: reply.num_examples, **reply.metrics}

    def _based(self, client_id: str, reply: TrainReply) -> TrainReply:  # noqa: ARG002 - not where all work on one model
        """Return a reply as one on the model that it is averaged with.

        Raises:
            WireError: the reply is refused.
        """
        return reply

    def _check_examples(self, client_id: str, num_examples: int) -> None:
        most = self._most[client_id]
        if num_examples > most:
            self.outgrown.add(client_id)
        if not 1 <= num_examples <= most:
            raise WireError(
                f"{NUM_EXAMPLES}={num_examples} is refused as a weight: expected 1 to {most}, what the client announced"
            )

    def _capped(self, client_id: str, num_examples: int, limit: int) -> int:
        """Return a client's weight; that it is less than its examples is logged once."""
        if num_examples > limit and (complaint := (client_id, "capped")) not in self._telling.complaints:
            self._telling.complaints.add(complaint)
            _log.warning(
                "Client %s has %d examples and weighs as %d do: %g times the median over clients "
                "(federation.max-weight).",
                client_id,
                num_examples,
                limit,
                self._rule.max_weight,
            )
        return min(num_examples, limit)


class EvaluationPhase(Phase):
    """Holds the replies of one evaluation."""

    name = "evaluation"

    def __init__(
        self,
        outgoing: Outgoing,
        asked: Mapping[str, Member],
        telling: Telling,
        max_weight: float = DEFAULT_MAX_WEIGHT,
        shape: CurveShape | None = None,
    ) -> None:
        """Open an evaluation; `shape` is what the curves must be, None takes any."""
        super().__init__(outgoing, asked, telling, max_weight)
        self._shape = shape

    def close(self, group: EvaluatedGroup) -> EvaluationResult:
        """Return the evaluation's result."""
        return EvaluationResult(**self._close(), group=group)

    def _accept(self, client_id: str, content: RecordDict) -> dict[str, MetricValue]:  # noqa: ARG002 - the same for all
        reply = EvaluateReply.from_records(content, self._shape)
        return {NUM_EXAMPLES: reply.num_examples, **reply.metrics}


def most_examples(member: Member) -> int:
    """Return the most examples that are believed of a client."""
    return member.description.num_support if member.announced else UNANNOUNCED_EXAMPLES
