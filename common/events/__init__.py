"""What a run tells: typed records from one stream, and the sinks that they go to."""

from nufed.common.events.event import Event
from nufed.common.events.of_clients import Asked, Joined, Left, Rejected, Replied
from nufed.common.events.records import (
    EVENTS,
    CellFinished,
    CheckpointSaved,
    Ended,
    Evaluated,
    Failed,
    Finished,
    Interrupted,
    Note,
    Phase,
    RoundClosed,
    SinkDropped,
    Started,
    from_json,
)
from nufed.common.events.stream import Connection, EventStream, Sink

__all__ = [
    "EVENTS",
    "Asked",
    "CellFinished",
    "CheckpointSaved",
    "Connection",
    "Ended",
    "Evaluated",
    "Event",
    "EventStream",
    "Failed",
    "Finished",
    "Interrupted",
    "Joined",
    "Left",
    "Note",
    "Phase",
    "Rejected",
    "Replied",
    "RoundClosed",
    "Sink",
    "SinkDropped",
    "Started",
    "from_json",
]
