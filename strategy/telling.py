"""What is told of a run while it goes on: its events, and each client's trouble once."""

from collections.abc import Callable

from nufed.common.events import EventStream


class Telling:
    """Holds where events go, and what was complained of already, over a run.

    Attributes:
        events: takes what happens.
        check: called from time to time while clients are waited for; what it raises ends the wait and comes out.
        wire_bytes: returns the bytes that have come from a node and gone to it so far; None where nothing goes over a
            wire that is known.
        complaints: client id and trouble that were logged, so that they are logged once and not every round.
        primary_step: the element of a client's curves that its numbers after fine-tuning are told of; -1 is the last.
    """

    def __init__(self, events: EventStream | None = None, check: Callable[[], None] = lambda: None) -> None:
        """Tell `events`; None tells nobody."""
        self.events = EventStream() if events is None else events
        self.check = check
        self.wire_bytes: Callable[[int], tuple[int, int]] | None = None
        self.complaints: set[tuple[str, str]] = set()
        self.primary_step = -1
