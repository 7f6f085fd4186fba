"""A run's events as metrics for Prometheus; names, units and labels follow its conventions.

Labels have few values whatever the run: phases, outcomes, groups, the task's metrics. No client, path or address is
one: single clients are in events.jsonl.
"""

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from nufed.common import __version__
from nufed.common.events import (
    Asked,
    CheckpointSaved,
    Ended,
    Evaluated,
    Event,
    EventStream,
    Joined,
    Left,
    Phase,
    Rejected,
    Replied,
    RoundClosed,
    SinkDropped,
    Started,
)
from nufed.common.privacy.publishing import withheld_by

STATES = (
    *("waiting", "statistics", "tuning", "training", "evaluation", "complete"),
    *("failed", "interrupted", "budget-spent"),
)
_PHASE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_LONGEST_LABEL = 60


@contextmanager
def kept_metrics(events: EventStream) -> Iterator[CollectorRegistry]:
    """Keep a stream's metrics in the block, and yield their registry: that of an outer block if there is one."""
    for sink in events.sinks:
        if isinstance(sink, PrometheusMetrics):
            yield sink.registry
            return
    sink = PrometheusMetrics()
    events.attach(sink)
    try:
        yield sink.registry
    finally:
        events.detach(sink)


class PrometheusMetrics:
    """A sink that keeps a run's metrics; holds the registry that they are in.

    Attributes:
        registry: what an exposition is made of (`prometheus_client.generate_latest`, `make_asgi_app`).
    """

    name = "Prometheus"
    kinds = (
        Asked, CheckpointSaved, Ended, Evaluated, Joined, Left, Phase, Rejected, Replied, RoundClosed, SinkDropped,
        Started,
    )  # fmt: skip

    def __init__(self) -> None:
        """Begin with a run that waits for clients."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        build = Info("nufed_build", "Versions of NuFed and Python", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})
        self._run = Info("nufed_run", "The run: its folder's name and what runs it", registry=registry)
        self._state = Enum("nufed_run_state", "What the run does now", states=list(STATES), registry=registry)
        self._round = self._gauge("round", "The last round that is closed")
        self._planned = self._gauge("planned_rounds", "Rounds in all")
        self._rounds = self._counter("rounds", "Rounds closed by this process")
        self._round_seconds = self._histogram("round_duration_seconds", "Time of a round with its evaluation")
        self._phase_seconds = self._histogram("phase_duration_seconds", "Time of a phase", ["phase"])
        seconds = self._histogram("reply_duration_seconds", "From asking a client to its reply", ["phase"])
        replies = self._counter("replies", "Clients asked, by what came of it", ["phase", "outcome"])
        received = self._counter("received_bytes", "Bytes that came from clients", ["phase"])
        sent = self._counter("sent_bytes", "Bytes sent to clients", ["phase"])
        self._reply_seconds, self._replies = cache(seconds.labels), cache(replies.labels)  # asked for at each reply
        self._received, self._sent = cache(received.labels), cache(sent.labels)
        self._connected = self._gauge("connected_clients", "Clients that are connected")
        self._working = self._gauge("working_clients", "Clients that were asked and have not answered yet")
        self._diverged = self._gauge("diverged_clients", "Clients of the last round whose training loss is not finite")
        self._training_loss = self._gauge("training_loss", "Mean training loss of the last round's clients")
        labels = ["group", "adaptation"]
        self._loss = self._gauge("evaluation_loss", "Mean test loss, before and after s* fine-tuning steps", labels)
        self._score = self._gauge(
            "evaluation_score",
            "Mean over clients of a test metric, before and after s* fine-tuning steps",
            [*labels, "metric"],
        )
        self._evaluated = self._gauge("evaluated_clients", "Clients that answered the last evaluation", ["group"])
        self._gradients = self._counter("gradient_evaluations", "Gradients computed by clients in training")
        self._hvps = self._counter("hessian_vector_products", "Hessian-vector products computed by clients in training")
        self._declare_of_some_runs()
        self._checkpoint = self._gauge("last_checkpoint_timestamp_seconds", "When the last checkpoint was saved")
        self._closed = self._gauge("last_round_timestamp_seconds", "When the last round was closed, or the run started")
        self._dropped = self._counter("dropped_events", "Events that a reader of the run has missed", ["sink"])
        self._online: set[str] = set()
        self._asked: set[str] = set()
        self._dropped_before: dict[str, int] = {}
        self._is_counted = True
        self._connected.set_function(lambda: len(self._online) if self._is_counted else math.nan)
        self._working.set_function(lambda: len(self._asked) if self._is_counted else math.nan)
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Asked: self._on_asked, CheckpointSaved: self._on_checkpoint, Evaluated: self._on_evaluation,
            Joined: self._on_joined, Left: self._on_left, Phase: self._on_phase, Rejected: self._on_rejected,
            Replied: self._on_reply, RoundClosed: self._on_round, SinkDropped: self._on_dropped,
            Started: self._on_start,
        }  # fmt: skip

    def _declare_of_some_runs(self) -> None:
        """Declare what only runs with late clients, or with privacy, have."""
        self._declare_private()
        self._staleness = self._gauge("update_staleness_steps", "Mean over the last step's updates of the steps missed")
        self._kept_models = self._gauge("kept_models", "Earlier models that clients at work were sent")
        self._simulated = self._counter("simulated_seconds", "Simulated time of rounds")
        self._is_buffered = False

    def _declare_private(self) -> None:
        self._epsilon = self._gauge("privacy_epsilon", "epsilon of client-level differential privacy that is spent")
        self._epsilon.set(math.nan)  # without privacy there is none
        self._secure = self._counter(
            "secure_rounds", "Rounds of secure aggregation, by whether they gave a sum", ["sum"]
        )
        self._lost = self._counter("secure_lost_clients", "Clients lost in secure aggregation", ["stage"])

    def handle(self, event: Event) -> None:
        """Take an event into the metrics."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)
        elif isinstance(event, Ended):
            self._state.state("failed" if event.kind == "failed" else event.status)
            self._asked.clear()

    def close(self) -> None:
        """Do nothing: the last values stay."""

    def _on_start(self, event: Started) -> None:
        about = {"run": event.run, "engine": event.engine, "measure": event.measure}
        self._run.info({name: value[:_LONGEST_LABEL] for name, value in about.items()})
        self._is_buffered = event.options.get("federation.mode") == "buffered"
        self._is_counted = "participants" not in withheld_by(event.options)
        self._planned.set(event.num_rounds)
        self._round.set(event.first_round - 1)
        self._closed.set(event.time)

    def _on_joined(self, event: Joined) -> None:
        self._online.add(event.client)

    def _on_left(self, event: Left) -> None:
        self._online.discard(event.client)
        self._asked.discard(event.client)

    def _on_asked(self, event: Asked) -> None:
        self._asked |= set(event.clients)

    def _on_phase(self, event: Phase) -> None:
        self._state.state(event.phase)
        if event.seconds is not None:
            self._phase_seconds.labels(event.phase).observe(event.seconds)
            if not (self._is_buffered and event.phase == "training"):  # in which clients go on after a step
                self._asked.clear()

    def _on_reply(self, event: Replied) -> None:
        self._asked.discard(event.client)
        self._count(event, "replied")
        self._reply_seconds(event.phase).observe(event.seconds)

    def _on_rejected(self, event: Rejected) -> None:
        self._asked.discard(event.client)
        self._count(event, event.outcome)

    def _count(self, event: Replied | Rejected, outcome: str) -> None:
        self._replies(event.phase, outcome).inc()
        self._received(event.phase).inc(max(0, event.bytes_up))
        self._sent(event.phase).inc(max(0, event.bytes_down))

    def _on_round(self, event: RoundClosed) -> None:
        self._round.set(event.round)
        self._rounds.inc()
        self._closed.set(event.time)
        self._round_seconds.observe(event.seconds)
        self._diverged.set(math.nan if event.diverged is None else event.diverged)
        self._training_loss.set(math.nan if event.loss is None else event.loss)
        self._epsilon.set(math.nan if event.epsilon is None else event.epsilon)
        self._gradients.inc(event.gradient_evaluations or 0)
        self._hvps.inc(event.hvps or 0)
        if event.buffer:
            self._staleness.set(event.buffer["mean_staleness"])
            self._kept_models.set(event.buffer["models"])
        self._simulated.inc(event.simulated_seconds or 0)
        if secure := event.secure_aggregation:
            self._secure.labels("no" if secure["reason"] else "yes").inc()
            for stage, lost in secure["dropped"].items():
                self._lost.labels(stage).inc(lost)

    def _on_evaluation(self, event: Evaluated) -> None:
        for group, curves in event.groups.items():
            self._evaluated.labels(group).set(event.num_clients[group])
            for metric, curve in curves.items():
                for adaptation, value in (("before", curve[0]), ("after", event.after(curve))):
                    if metric == "loss":
                        self._loss.labels(group, adaptation).set(value)
                    else:
                        self._score.labels(group, adaptation, metric[:_LONGEST_LABEL]).set(value)

    def _on_checkpoint(self, event: CheckpointSaved) -> None:
        self._checkpoint.set(event.time)

    def _on_dropped(self, event: SinkDropped) -> None:
        before = self._dropped_before.get(event.sink, 0)
        self._dropped.labels(event.sink[:_LONGEST_LABEL]).inc(max(0, event.dropped - before))
        self._dropped_before[event.sink] = event.dropped

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(f"nufed_{name}", text, labels or [], registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"nufed_{name}", text, labels or [], registry=self.registry)

    def _histogram(self, name: str, text: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(f"nufed_{name}", text, labels or [], registry=self.registry, buckets=_PHASE_BUCKETS)
