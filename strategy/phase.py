"""One phase, training or evaluation, from the messages that open it to the result that closes it."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from nufed.common.errors import WireError
from nufed.common.params import Params, largest_magnitude
from nufed.common.wire import (
    ARRAYS,
    CONFIG,
    NUM_EXAMPLES,
    SERVER_ROUND,
    EvaluateReply,
    MetricValue,
    TrainReply,
)
from nufed.strategy.aggregation import RunningMean, server_step
from nufed.strategy.exchange import time_to_live
from nufed.strategy.ledger import Ledger
from nufed.strategy.members import Member
from nufed.strategy.results import EvaluatedGroup, EvaluationResult, RoundResult, Weighting

UNANNOUNCED_EXAMPLES = 2**20
"""Largest `num-examples` believed of a client that did not say beforehand how many it has."""


@dataclass(frozen=True)
class AveragingRule:
    """How replies are averaged, and what becomes of their mean.

    Attributes:
        weighting: weights, `uniform` or `examples`.
        max_growth: at which a reply counts as diverged.
        server_lr: ε, how far w_k moves towards the mean.
    """

    weighting: Weighting
    max_growth: float
    server_lr: float = 1.0


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
    """

    def __init__(self, outgoing: Outgoing, asked: Mapping[str, Member], complaints: set[tuple[str, str]]) -> None:
        """Open a phase.

        Args:
            outgoing: what is sent.
            asked: whom to, by client id.
            complaints: see `Ledger`.
        """
        self.round = outgoing.round
        self.messages = outgoing.messages(asked)
        self._timeout = outgoing.timeout
        self._bytes_down = len(self.messages) * outgoing.num_bytes()
        self._ledger = Ledger({member.node_id: client_id for client_id, member in asked.items()}, complaints)

    def take(self, node_id: int | None, reply: Message) -> None:
        """Enter one reply; nothing that a client sends makes this raise."""
        self._ledger.take(node_id, reply, self._accept)

    @abstractmethod
    def _accept(self, client_id: str, content: RecordDict) -> dict[str, MetricValue]:
        """Return a reply's metrics.

        Raises:
            WireError: the reply is refused.
        """

    def _close(self) -> dict[str, Any]:
        """Return the attributes of a `PhaseResult`; who has not answered is missing."""
        ledger = self._ledger
        ledger.close(self._timeout)
        return {
            "round": self.round,
            "counts": ledger.counts,
            "problems": ledger.problems,
            "client_metrics": dict(sorted(ledger.client_metrics.items())),
            "strays": ledger.strays,
            "bytes_down": self._bytes_down,
            "bytes_up": ledger.bytes_up,
            "seconds": ledger.seconds,
        }


class TrainingPhase(Phase):
    """Holds the running mean of one round, and what each client may weigh in it.

    Attributes:
        outgrown: clients that reported more examples than they had announced.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        asked: Mapping[str, Member],
        complaints: set[tuple[str, str]],
        rule: AveragingRule,
        sent: Params,
    ) -> None:
        """Open a round; `sent` is w_k."""
        super().__init__(outgoing, asked, complaints)
        self.outgrown: set[str] = set()
        self._rule = rule
        self._sent = sent
        self._most = {client_id: _most_examples(member) for client_id, member in asked.items()}
        total = len(asked) if rule.weighting == "uniform" else sum(self._most.values())
        self._mean = RunningMean(sent, total, rule.max_growth)

    def close(self) -> RoundResult:
        """Return the round's result; w_{k+1} is w_k if no usable reply came.

        Raises:
            ModelError: the server step is not finite.
        """
        mean = self._mean.result()
        assert mean is None or all(math.isfinite(largest_magnitude(w)) for w in mean.values())  # noqa: S101 - our bug
        return RoundResult(**self._close(), params=self._sent if mean is None else self._stepped(mean))

    def _stepped(self, mean: Params) -> Params:
        return server_step(self._sent, mean, self._rule.server_lr)

    def _accept(self, client_id: str, content: RecordDict) -> dict[str, MetricValue]:
        reply = TrainReply.from_records(content)
        self._mean.fold(reply.params, self._weight(client_id, reply.num_examples))
        return {NUM_EXAMPLES: reply.num_examples, **reply.metrics}

    def _weight(self, client_id: str, num_examples: int) -> int:
        if self._rule.weighting == "uniform":
            return 1
        most = self._most[client_id]
        if num_examples > most:
            self.outgrown.add(client_id)
        if not 1 <= num_examples <= most:
            raise WireError(
                f"{NUM_EXAMPLES}={num_examples} is refused as a weight: expected 1 to {most}, what the client announced"
            )
        return num_examples


class EvaluationPhase(Phase):
    """Holds the replies of one evaluation."""

    def close(self, group: EvaluatedGroup) -> EvaluationResult:
        """Return the evaluation's result."""
        return EvaluationResult(**self._close(), group=group)

    def _accept(self, client_id: str, content: RecordDict) -> dict[str, MetricValue]:  # noqa: ARG002 - the same for all
        reply = EvaluateReply.from_records(content)
        return {NUM_EXAMPLES: reply.num_examples, **reply.metrics}


def _most_examples(member: Member) -> int:
    return member.description.num_support if member.announced else UNANNOUNCED_EXAMPLES
