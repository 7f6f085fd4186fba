"""From those who tell of a run to those who show it: no reader of the stream can slow the run or end it.

Each sink has a queue of its own, which is bounded, and a thread of its own, which hands it the events in their order.
A sink that is too slow misses events and one that raises misses that event; both are counted, and told once.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from nufed.common.events.event import Event
from nufed.common.events.records import Ended, Note, SinkDropped, Started
from nufed.common.privacy.publishing import Publication
from nufed.common.untrusted import printable

DEFAULT_LIMIT = 20_000
"""Events that wait for a sink at most."""

DEFAULT_PATIENCE = 10.0
"""Seconds that a sink has at the end to take what waits for it."""

_PAUSE = 0.05
"""Seconds between two looks at a queue, so that events of single clients are taken many at a time."""

_log = logging.getLogger("nufed.events")


class Sink(Protocol):
    """Takes events, one at a time, in a thread of its own."""

    @property
    def name(self) -> str:
        """What it is called in messages, e.g. `events.jsonl`."""

    @property
    def kinds(self) -> tuple[type[Event], ...] | None:
        """The records that it takes, with those derived from them; None takes all."""

    def handle(self, event: Event) -> None:
        """Take an event; what is raised here is counted, and ends nothing."""

    def close(self) -> None:
        """Take note that no more events come; called in the same thread."""


@dataclass(frozen=True)
class Connection:
    """What is known of a client's connection now.

    Attributes:
        client: its name.
        connected_since: seconds since 1970.
        last_seen: when it called last, seconds since 1970.
        is_working: whether it has taken a message and not answered yet.
        is_online: whether it is there.
        key: name of the key that it proved to have; empty without node keys.
        bytes_up: received from it on the wire since it came.
        bytes_down: sent to it likewise.
    """

    client: str
    connected_since: float
    last_seen: float
    is_working: bool = False
    is_online: bool = True
    key: str = ""
    bytes_up: int = 0
    bytes_down: int = 0


class EventStream:
    """Hands what is published to every sink; any thread may publish. Use it in a `with` block, or close it.

    Attributes:
        run: name of the run's folder, which events are stamped with; empty before there is one.
        publication: what is shown; everything that is published passes it, so that no reader learns what is withheld.
        connections: returns what is known of the clients' connections now, in a server; nothing in a simulation, or
            where who takes part is withheld.

    Examples:
        >>> heard = []
        >>> with EventStream() as stream:
        ...     stream.listen(heard.append)
        ...     stream.say("hello")
        >>> heard[0].text
        'hello'
    """

    def __init__(self) -> None:
        """Have no reader."""
        self.run = ""
        self.publication = Publication()
        self._connections: Callable[[], Sequence[Connection]] = tuple
        self._lock = threading.Lock()
        self._deliveries: tuple[_Delivery, ...] = ()
        self._listeners: tuple[Callable[[Event], None], ...] = ()

    def __enter__(self) -> Self:
        """Return the stream."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        """Close the stream."""
        self.close()

    @property
    def connections(self) -> Callable[[], Sequence[Connection]]:
        """What returns what is known of the clients' connections now."""
        return self._connections if self.publication.participants else tuple

    @connections.setter
    def connections(self, connections: Callable[[], Sequence[Connection]]) -> None:
        self._connections = connections

    @property
    def is_read(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._deliveries or self._listeners)

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """Those that take what is published now."""
        return tuple(each.sink for each in self._deliveries)

    def attach(self, sink: Sink, *, limit: int = DEFAULT_LIMIT, patience: float | None = DEFAULT_PATIENCE) -> None:
        """Let a sink take what is published from now on.

        Args:
            sink: the reader.
            limit: events that wait for it at most; beyond, what is about single clients is dropped first.
            patience: seconds that it has at the end to take what waits; None waits until it has.
        """
        delivery = _Delivery(sink, limit, patience, self._note_dropped)
        with self._lock:
            self._deliveries = (*self._deliveries, delivery)

    def detach(self, sink: Sink) -> None:
        """Let a sink take what waits for it, within its patience, and no more."""
        with self._lock:
            ending = [each for each in self._deliveries if each.sink is sink]
            self._deliveries = tuple(each for each in self._deliveries if each.sink is not sink)
        for delivery in ending:
            delivery.end()

    def listen(self, handler: Callable[[Event], None]) -> None:
        """Have a function called in the publisher's own thread, at once; what it raises reaches the publisher.

        It is for what belongs to the run itself, whatever it costs; everything else is a sink.
        """
        with self._lock:
            self._listeners = (*self._listeners, handler)

    def ignore(self, handler: Callable[[Event], None]) -> None:
        """Have a function of `listen` called no more."""
        with self._lock:
            self._listeners = tuple(each for each in self._listeners if each is not handler)

    def tell(self, kind: type[Event], **fields: Any) -> None:
        """Publish a record of this kind, of the stream's run and of now; nothing is made where nobody reads."""
        if self._deliveries or self._listeners:
            self.publish(kind(run=self.run, **fields))

    def say(self, text: str) -> None:
        """Publish a line of text."""
        self.tell(Note, text=text)

    def say_of_clients(self, text: str) -> None:
        """Publish a line that names clients or tells of their data; where that is withheld, the process logs it alone.

        Whoever runs a process must see which client is in trouble: what it logs is the operator's own, and in no
        record of the run.
        """
        if self.publication.participants and self.publication.examples:
            self.say(text)
        else:
            _log.info("%s", text)

    def publish(self, event: Event) -> None:
        """Hand an event to every sink, without waiting for any of them, and without what is withheld."""
        told = event.within(self.publication)
        if told is None:
            return
        for delivery in self._deliveries:
            delivery.put(told)
        for handler in self._listeners:
            handler(told)

    def flush(self, timeout: float = DEFAULT_PATIENCE) -> bool:
        """Return whether every sink has taken what was published by now, waiting for it at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        return all(each.wait_until_empty(deadline) for each in self._deliveries)

    def close(self) -> None:
        """Let every sink take what waits for it, within its patience, and end."""
        for delivery in self._deliveries:
            delivery.finish()
        for delivery in self._deliveries:
            self.detach(delivery.sink)

    def _note_dropped(self, name: str, dropped: int) -> None:
        """Tell the other sinks that one has missed events."""
        event = SinkDropped(run=self.run, sink=name, dropped=dropped)
        for delivery in self._deliveries:
            if delivery.sink.name != name:
                delivery.put(event)


class _Delivery:
    """Holds what waits for one sink, and the thread that hands it over."""

    def __init__(self, sink: Sink, limit: int, patience: float | None, on_dropped: Callable[[str, int], None]) -> None:
        """Begin to deliver."""
        self.sink = sink
        self._limit, self._patience, self._on_dropped = limit, patience, on_dropped
        self._waiting: deque[Event] = deque()
        self._more, self._ended = threading.Event(), threading.Event()
        self._is_busy = self._is_over = self._was_told = False
        self._dropped = 0
        self._thread = threading.Thread(target=self._deliver, name=f"events to {sink.name}", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Queue an event without waiting; how a run begins and ends is always kept."""
        if self.sink.kinds is not None and not isinstance(event, self.sink.kinds):
            return
        if len(self._waiting) >= self._limit and not isinstance(event, Started | Ended):
            if event.is_minor:
                self._drop("is too slow")
                return
            try:
                self._waiting.popleft()
            except IndexError:
                pass
            else:
                self._drop("is too slow")
        self._waiting.append(event)
        if not self._more.is_set():
            self._more.set()

    def wait_until_empty(self, deadline: float) -> bool:
        """Return whether the sink has taken everything by a time of the monotonic clock."""
        while self._waiting or self._is_busy:
            if time.monotonic() >= deadline or not self._thread.is_alive():
                return False
            time.sleep(_PAUSE / 5)
        return True

    def finish(self) -> None:
        """Let the thread end once everything is taken."""
        self._is_over = True
        self._more.set()
        self._ended.set()

    def end(self) -> None:
        """Wait for the thread within the sink's patience; then what still waits is dropped."""
        self.finish()
        self._thread.join(self._patience)
        if left := len(self._waiting) + self._is_busy:
            self._waiting.clear()
            self._drop(f"has not taken {left} events in time", left)
        if self._dropped:
            self._on_dropped(self.sink.name, self._dropped)

    def _deliver(self) -> None:
        while True:
            self._more.wait()
            self._more.clear()
            self._take_all()
            if self._is_over and not self._waiting:
                break
            self._ended.wait(_PAUSE)
        try:
            self.sink.close()
        except Exception as error:  # noqa: BLE001 - a sink is anybody's code, and ends no run
            self._drop(f"failed ({printable(f'{type(error).__name__}: {error}')})", 0)

    def _take_all(self) -> None:
        self._is_busy = True
        while self._waiting:
            try:
                event = self._waiting.popleft()
            except IndexError:  # it was dropped just now
                break
            try:
                self.sink.handle(event)
            except Exception as error:  # noqa: BLE001 - a sink is anybody's code, and ends no run
                self._drop(f"failed ({printable(f'{type(error).__name__}: {error}')})")
        self._is_busy = False

    def _drop(self, how: str, number: int = 1) -> None:
        self._dropped += number
        if self._was_told:
            return
        self._was_told = True
        _log.warning("%s %s: it misses events of this run, which goes on.", self.sink.name, how)
        if number:
            self._on_dropped(self.sink.name, self._dropped)
