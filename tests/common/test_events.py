"""The stream of events: order, bounds, sinks that are slow or fail, and records that come back from JSON."""

import json
import math
import threading
import time
from dataclasses import FrozenInstanceError, fields

import pytest

from nufed.common.events import (
    EVENTS,
    Evaluated,
    EventStream,
    Finished,
    Note,
    Replied,
    RoundClosed,
    SinkDropped,
    from_json,
)


class Collected:
    name, kinds = "collected", None

    def __init__(self, kinds=None, failing=False, held=None):
        self.kinds, self.failing, self.held = kinds, failing, held
        self.events, self.closed = [], False

    def handle(self, event):
        if self.held:
            self.held.wait(20)
        if self.failing:
            raise OSError("\x1b[31mno such server")
        self.events.append(event)

    def close(self):
        self.closed = True


def replies(stream, number):
    for client in range(number):
        stream.tell(
            Replied, client=f"c{client}", phase="training", round=1, bytes_up=1, bytes_down=2, seconds=0.5, loss=1.0
        )


def test_every_sink_gets_what_it_wants_in_order_and_is_closed():
    everything, rounds = Collected(), Collected(kinds=(RoundClosed,))
    with EventStream() as stream:
        stream.attach(everything)
        stream.attach(rounds)
        replies(stream, 500)
        stream.tell(RoundClosed, round=1, num_rounds=1)

    assert [event.client for event in everything.events[:-1]] == [f"c{client}" for client in range(500)]
    assert [event.round for event in rounds.events] == [1]
    assert everything.closed
    assert rounds.closed


def test_a_sink_that_is_stuck_costs_nothing_and_misses_what_does_not_fit(caplog):
    release = threading.Event()
    stuck, watching = Collected(held=release), Collected(kinds=(SinkDropped,))
    watching.name = "watching"
    stream = EventStream()
    stream.attach(stuck, limit=100, patience=0.2)
    stream.attach(watching)

    started = time.perf_counter()
    replies(stream, 20_000)
    stream.tell(Finished, status="complete", round=1)
    published = time.perf_counter() - started
    stream.close()
    release.set()

    assert published < 2  # a stuck sink that was waited for would hold it up for 20 s
    assert watching.events[0].sink == "collected"
    assert watching.events[0].dropped >= 1
    assert caplog.text.count("collected is too slow") == 1


def test_how_a_run_ends_reaches_a_sink_whose_queue_is_full():
    release = threading.Event()
    slow = Collected(held=release)
    with EventStream() as stream:
        stream.attach(slow, limit=10)
        replies(stream, 100)
        stream.tell(Finished, status="complete", round=1)
        release.set()

    assert isinstance(slow.events[-1], Finished)
    assert len(slow.events) <= 13


def test_a_sink_that_fails_is_told_of_once_and_the_others_go_on(caplog):
    failing, whole = Collected(failing=True), Collected()
    with EventStream() as stream:
        stream.attach(failing)
        stream.attach(whole)
        replies(stream, 50)

    assert sum(isinstance(event, Replied) for event in whole.events) == 50
    assert caplog.text.count("collected failed") == 1
    assert "\x1b" not in caplog.text


def test_records_are_frozen_and_come_back_from_json():
    event = Evaluated(run="r", round=2, final=False, groups={"new": {"loss": (1.0, math.nan)}}, num_clients={"new": 1})

    with pytest.raises(FrozenInstanceError):
        event.round = 3
    back = from_json(json.loads(json.dumps({**event.to_json(), "groups": {"new": {"loss": [1.0, None]}}, "later": 1})))

    assert back.groups["new"]["loss"][0] == 1.0
    assert math.isnan(back.groups["new"]["loss"][1])
    assert (back.run, back.time, back.num_clients) == (event.run, event.time, event.num_clients)
    for wrong in ({}, {"event": "nothing"}, {"event": "round"}):
        with pytest.raises(ValueError, match="event"):
            from_json(wrong)


@pytest.mark.parametrize("kind", EVENTS.values(), ids=EVENTS)
def test_a_reduced_record_is_one_of_the_same_kind_without_single_clients(kind):
    minimal = {
        each.name: {"a": {}} if "Mapping" in str(each.type) else ("a",) if "tuple" in str(each.type) else 1
        for each in fields(kind)
        if each.name not in ("run", "time")
    }

    reduced = kind(**minimal).reduced()

    assert isinstance(reduced, kind)
    assert getattr(reduced, "clients", ()) in ((), {})
    assert not getattr(reduced, "problems", {})


def test_nobody_is_told_where_nobody_reads():
    stream = EventStream()

    stream.tell(Note, text="nobody")

    assert not stream.is_read
