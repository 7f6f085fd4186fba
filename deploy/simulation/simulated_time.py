"""The time of a simulation: each client trains for as long as it is said to, and the order of replies follows.

Time is counted in whole microseconds, so that sums and differences are exact, and a run that goes on from a checkpoint
is the same to the last bit. Asking who clients are, and judging models, takes none.
"""

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType

MICROSECONDS = 1_000_000


class SimulatedClock:
    """Holds what time it is, and how long each client trains.

    Attributes:
        now: microseconds since the run began.
        is_set: whether clients have speeds; without, training takes no time.
        seconds: that each partition's client trains for; empty without speeds.
    """

    def __init__(self, seconds: Sequence[float] = ()) -> None:
        """Begin at 0; `seconds` are those that each partition's client trains for, none without speeds."""
        self.now = 0
        self.is_set, self.seconds = bool(seconds), tuple(seconds)
        self._durations = [max(1, round(each * MICROSECONDS)) for each in seconds]

    def duration(self, message: Message, partition: int) -> int:
        """Return how long the client of a partition works on a message, in microseconds."""
        if message.metadata.message_type != MessageType.TRAIN or not self.is_set:
            return 0
        return self._durations[partition] if 0 <= partition < len(self._durations) else 0


def microseconds(seconds: float | None) -> float:
    """Return whole microseconds, rounded up; infinite for None."""
    return math.inf if seconds is None or math.isinf(seconds) else math.ceil(seconds * MICROSECONDS)


@dataclass(order=True)
class _Underway:
    due: int
    number: int
    message: Message = field(compare=False)


class MessagesUnderway:
    """Holds messages in the order in which their replies are due: by time, then in the order of sending."""

    def __init__(self) -> None:
        """Begin without messages."""
        self._heap: list[_Underway] = []
        self._withdrawn: set[str] = set()
        self._numbers = itertools.count()

    def add(self, message: Message, due: int) -> None:
        """Add a message whose reply is due at `due`, in microseconds."""
        heapq.heappush(self._heap, _Underway(due, next(self._numbers), message))

    def withdraw(self, message_id: str) -> None:
        """Take a message back."""
        if any(each.message.metadata.message_id == message_id for each in self._heap):
            self._withdrawn.add(message_id)

    def first_due(self) -> int | None:
        """Return when the next reply is due; None if nothing is under way."""
        while self._heap and self._heap[0].message.metadata.message_id in self._withdrawn:
            self._withdrawn.remove(heapq.heappop(self._heap).message.metadata.message_id)
        return self._heap[0].due if self._heap else None

    def pop(self) -> Message:
        """Return the message whose reply is due next; there must be one."""
        return heapq.heappop(self._heap).message

    def all(self) -> list[Message]:
        """Return the messages that are under way, the next ones first."""
        return [each.message for each in sorted(self._heap) if each.message.metadata.message_id not in self._withdrawn]
