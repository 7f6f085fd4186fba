"""The record of one phase: who was asked, what each answered, and what was made of it."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Literal

from flwr.app import Message, RecordDict

from nufed.common.errors import WireError
from nufed.common.events import Asked, Rejected, Replied
from nufed.common.events.event import PhaseName
from nufed.common.message_schema import NUM_EXAMPLES, MetricValue
from nufed.common.untrusted import printable
from nufed.strategy.exchange import describe_error
from nufed.strategy.results import Counts
from nufed.strategy.telling import Telling

Outcome = Literal["replied", "rejected", "failed", "missing", "dropped"]
Accept = Callable[[str, RecordDict], dict[str, MetricValue]]
"""From a client's id and its reply's content to its metrics; raises WireError to refuse the reply."""

ENOUGH = "enough others had replied"

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")

_log = logging.getLogger("nufed.strategy")


class PhaseRecord:
    """Holds what came of each client asked in one phase, until the phase ends.

    Attributes:
        client_metrics: metrics by client id, for each client that replied.
        strays: replies that nobody was asked for, or that came twice.
        bytes_up: array content received.
    """

    def __init__(
        self, asked: Mapping[int, str], telling: Telling, *, phase: PhaseName, round_number: int, bytes_down: int
    ) -> None:
        """Begin the record.

        Args:
            asked: client id by node id.
            telling: takes each client's trouble, and the events of the phase.
            phase: its name.
            round_number: k.
            bytes_down: array content sent to each client.
        """
        self.client_metrics: dict[str, dict[str, MetricValue]] = {}
        self.strays = 0
        self.bytes_up = 0
        self._asked = dict(asked)
        self._outcomes: dict[str, Outcome] = {}
        self._problems: dict[str, str] = {}
        self._overdue: dict[str, str] = {}
        self._told: set[str] = set()
        self._telling, self._about = telling, {"phase": phase, "round": round_number}
        self._bytes_down = bytes_down
        self._wire = {node: telling.wire_bytes(node) for node in asked} if telling.wire_bytes else {}
        self._nodes = {client_id: node for node, client_id in self._asked.items()}
        self._opened = time.perf_counter()
        self._begun: dict[str, float] = {}  # when each client was asked that was not asked when the phase began
        if clients := tuple(self._asked.values()):
            telling.events.tell(Asked, clients=clients, bytes_down=bytes_down, **self._about)

    def include(self, node_id: int, client_id: str, begun: float, wire: tuple[int, int] | None) -> None:
        """Count a client that was asked before, of whom something is about to be entered.

        Args:
            node_id: its node.
            client_id: its name.
            begun: when it was asked, in seconds of `time.perf_counter`.
            wire: bytes that had come from the node and gone to it by then; None where they are not known.
        """
        self._asked[node_id], self._nodes[client_id], self._begun[client_id] = client_id, node_id, begun
        if wire is not None:
            self._wire[node_id] = wire

    @property
    def clients(self) -> frozenset[str]:
        """The clients that are counted."""
        return frozenset(self._nodes)

    def take(self, node_id: int | None, reply: Message, accept: Accept) -> bool:
        """Enter one reply, and return whether it is used; nothing that a client sends makes this raise."""
        client_id = None if node_id is None else self._asked.get(node_id)
        if client_id is None or client_id in self._outcomes:
            self.strays += 1
            _log.warning("A reply from node %d is ignored: %s.", reply.metadata.src_node_id, _stray(client_id))
        elif reply.has_error():
            self._enter(client_id, "failed", describe_error(reply))
        elif not reply.has_content():
            self._enter(client_id, "rejected", "the reply is empty")
        else:
            received = array_bytes(reply.content)
            self.bytes_up += received
            try:
                metrics = accept(client_id, reply.content)
            except WireError as error:
                self._enter(client_id, "rejected", str(error), received)
            else:
                self.client_metrics[client_id] = metrics
                self._outcomes[client_id] = "replied"
                if self._telling.events.is_read:
                    self._tell_reply(client_id, metrics, received)
                return True
        return False

    def leave_out(self, client_id: str, outcome: Literal["rejected", "failed", "missing"], reason: str) -> None:
        """Enter what became of a client that has not replied and will not be asked any more in this phase."""
        if outcome == "missing":
            self._overdue[client_id] = reason
        else:
            self._enter(client_id, outcome, reason)

    def is_open(self, client_id: str) -> bool:
        """Return whether nothing is known yet of what became of a client."""
        return client_id not in self._outcomes and client_id not in self._overdue

    def reject_all(self, reason: str) -> None:
        """Enter the clients that replied as rejected: what all of them sent together is of no use."""
        for client_id in sorted(self.client_metrics):
            self._enter(client_id, "rejected", reason)
        self.client_metrics.clear()

    def drop(self, client_id: str, reason: str) -> None:
        """Enter a client whose work is of no use any more, though nothing is wrong with it: no cause for complaint."""
        self._outcomes[client_id] = "dropped"
        self._tell_unused(client_id, "dropped", reason)

    def close(self, timeout: float | None, *, is_full: bool = False) -> None:
        """Enter the clients that did not answer: as dropped where there were enough replies, else as missing."""
        for client_id in self._asked.values():
            if client_id in self._outcomes:
                continue
            if is_full and client_id not in self._overdue:
                self.drop(client_id, ENOUGH)
                continue
            within = "" if timeout is None else f" within {timeout:g} s"
            self._complain(client_id, "missing", self._overdue.get(client_id, f"no reply{within}"))

    @property
    def counts(self) -> Counts:
        """What came of the clients asked; all of those of whom nothing is known are missing."""
        outcomes = list(self._outcomes.values())
        replied, rejected, failed, dropped = (
            outcomes.count(kind) for kind in ("replied", "rejected", "failed", "dropped")
        )
        missing = len(self._asked) - replied - rejected - failed - dropped
        return Counts(len(self._asked), replied, rejected, failed, missing, dropped)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The clients whose work was dropped, in the order of ids."""
        return tuple(sorted(name for name, outcome in self._outcomes.items() if outcome == "dropped"))

    @property
    def problems(self) -> dict[str, str]:
        """Reason by client id, for each client rejected, failed or missing, in the order of ids."""
        return dict(sorted(self._problems.items()))

    @property
    def seconds(self) -> float:
        """Time since the record was begun."""
        return time.perf_counter() - self._opened

    def _seconds_of(self, client_id: str) -> float:
        return time.perf_counter() - self._begun.get(client_id, self._opened)

    def _bytes(self, client_id: str, received: int) -> dict[str, int]:
        """Return what went to and came from a client since the last time: on the wire, or else array content."""
        node = self._nodes[client_id]
        if self._telling.wire_bytes is None:
            sent = 0 if client_id in self._told else self._bytes_down
        else:
            up, down = self._telling.wire_bytes(node)
            received, sent = up - self._wire[node][0], down - self._wire[node][1]
            self._wire[node] = up, down
        self._told.add(client_id)
        return {"bytes_up": received, "bytes_down": sent}

    def _enter(self, client_id: str, outcome: Outcome, reason: str, received: int = 0) -> None:
        self._outcomes[client_id] = outcome
        self._complain(client_id, outcome, reason, received)

    def _tell_reply(self, client_id: str, metrics: Mapping[str, MetricValue], received: int) -> None:
        curves = {name.removeprefix("test-"): value for name, value in metrics.items() if name.startswith("test-")}
        step = self._telling.primary_step
        self._telling.events.tell(
            Replied,
            client=client_id,
            **self._bytes(client_id, received),
            seconds=self._seconds_of(client_id),
            client_seconds=metrics.get("seconds"),
            num_examples=metrics.get(NUM_EXAMPLES, 0),
            loss=metrics.get("loss"),
            before={name: curve[0] for name, curve in curves.items() if isinstance(curve, list) and curve},
            after={
                name: curve[step] for name, curve in curves.items() if isinstance(curve, list) and step < len(curve)
            },
            **self._about,
        )

    def _complain(self, client_id: str, outcome: str, reason: str, received: int = 0) -> None:
        """Keep the reason, and log it unless this client was in the same trouble before, whatever the numbers.

        Reasons quote what clients sent, so that they are made fit to be shown here, for all who show them.
        """
        reason = printable(reason)
        self._problems[client_id] = reason
        self._tell_unused(client_id, outcome, reason, received)
        complaint = client_id, outcome + _NUMBER.sub("", reason)
        if complaint not in self._telling.complaints:
            self._telling.complaints.add(complaint)
            _log.warning("Client %s is left out (%s): %s.", client_id, outcome, reason.rstrip("."))

    def _tell_unused(self, client_id: str, outcome: str, reason: str, received: int = 0) -> None:
        self._telling.events.tell(
            Rejected,
            client=client_id,
            outcome=outcome,
            reason=reason,
            **self._bytes(client_id, received),
            seconds=self._seconds_of(client_id),
            **self._about,
        )


def _stray(client_id: str | None) -> str:
    return "nobody asked it" if client_id is None else f"client {client_id} has answered already"


def array_bytes(content: RecordDict) -> int:
    """Return the size of the arrays in a message's content."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
