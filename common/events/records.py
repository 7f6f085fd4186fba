"""The events of a run: one frozen record for each thing that happens, with the run and the time.

    started          options and folder are known, the first round begins     one for each time that a run is started
    joined, left     a client is there, or is there no more
    phase            statistics, tuning, training or evaluation begins or ends
    asked            clients were sent a message
    replied          a client's reply was taken
    rejected         a client's reply was refused, or was an error, or did not come
    round            a round is closed: what came of it
    evaluation       clients have judged the model
    checkpoint       the run can be resumed from here
    cell             a run of an experiment is over
    note             a line of text
    sink-dropped     events that one of the readers of the stream has missed
    finished, failed, interrupted    how the run ended; exactly one of them, the last record

A record holds what JSON can hold. What other machines sent is made printable and short before it gets here
(nufed.common.untrusted). Nothing of the clients' data is in any record, and no key, address or path of theirs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

from nufed.common.config import Scalar
from nufed.common.events.event import Event, PhaseName
from nufed.common.events.of_clients import Asked, Joined, Left, Rejected, Replied
from nufed.common.privacy.publishing import Publication

Curves = Mapping[str, tuple[float, ...]]
"""Metric -> mean over a group's clients, element s after s fine-tuning steps."""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A run begins, or goes on: all clients that it waits for are there.

    Attributes:
        folder: the run's folder.
        options: the run's options by their dotted names.
        engine: what runs the clients: an engine of the simulation, or `fleet`.
        first_round: the round that comes next; above 1 where a run goes on. Records of that round and later ones that
            come before this one are of an earlier part of the run, whose rounds are done again.
        num_rounds: rounds in all.
        measure: metric that the task is judged by.
        primary_step: s*, the fine-tuning step that clients are compared at.
        num_parameters: numbers in the model.
    """

    kind: ClassVar[str] = "started"

    folder: str
    options: Mapping[str, Scalar]
    engine: str
    first_round: int
    num_rounds: int
    measure: str
    primary_step: int = 0
    num_parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """A phase begins or ends.

    Attributes:
        phase: its name.
        round: the round that it belongs to; 0 before the first.
        seconds: that it took; None where it begins.
    """

    kind: ClassVar[str] = "phase"

    phase: PhaseName
    round: int = 0
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class RoundClosed(Event):
    """A round is over, with the evaluation that follows it if there is one; as in metrics.jsonl, but for the clients.

    Attributes:
        round: k.
        num_rounds: rounds in all.
        sampled: clients asked to train, in buffered mode those of whose work something has come; the sum of the next
            five. Like them, and the sums below, None where who takes part is withheld.
        replied: replies that were used.
        rejected: replies that were refused.
        failed: errors in place of replies.
        missing: replies that did not come in time.
        dropped: clients that were not waited for, because enough others had replied, or worked on too old a model.
        problems: why replies were not used, by client.
        loss: mean training loss over the clients that replied; None or NaN without any.
        diverged: clients whose reply was used though its loss is not finite.
        loss_weighted: as `loss`, weighted by examples.
        gradient_evaluations: of all clients.
        hvps: Hessian-vector products of all clients.
        bytes_up: array content received.
        bytes_down: array content sent.
        seconds: wall time of the round and its evaluation.
        simulated_seconds: simulated time of the round; None where clients have no speeds (federation.client-speeds).
        buffer: of a buffered step (nufed.strategy.results.BufferOutcome); None of a synchronous round.
        evaluation: curves of the participating clients, their problems and seconds; None without evaluation.
        secure_aggregation: how secure aggregation went (nufed.strategy.results.SecureOutcome); None without.
        epsilon: ε of client-level differential privacy, of all rounds so far; None without.
        delta: its δ.
    """

    kind: ClassVar[str] = "round"

    round: int
    num_rounds: int
    sampled: int | None = 0
    replied: int | None = 0
    rejected: int | None = 0
    failed: int | None = 0
    missing: int | None = 0
    dropped: int | None = 0
    problems: Mapping[str, str] = field(default_factory=dict)
    loss: float | None = None
    diverged: int | None = 0
    loss_weighted: float | None = None
    gradient_evaluations: int | None = 0
    hvps: int | None = 0
    bytes_up: int | None = 0
    bytes_down: int | None = 0
    seconds: float = 0.0
    simulated_seconds: float | None = None
    buffer: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    secure_aggregation: Mapping[str, Any] | None = None
    epsilon: float | None = None
    delta: float | None = None

    def reduced(self) -> Self:
        """Return the record without problems of single clients."""
        evaluation = {**self.evaluation, "problems": {}} if self.evaluation else None
        secure = {**self.secure_aggregation, "late": {}} if self.secure_aggregation else None
        return replace(self, problems={}, evaluation=evaluation, secure_aggregation=secure)


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """Clients have judged the model.

    Attributes:
        round: server updates that the model has seen.
        final: whether it is the evaluation at the end, of all clients.
        groups: group -> metric -> mean curve over its clients, element s after s fine-tuning steps; element 0 is before
            adaptation. NaN where no client's number is finite.
        num_clients: group -> clients that answered.
        clients: client -> `group`, `before` and `after` (metric -> value before, and after `primary_step` steps).
        seconds: that it took.
        primary_step: s*, the number of fine-tuning steps that single numbers are told after.
    """

    kind: ClassVar[str] = "evaluation"

    round: int
    final: bool
    groups: Mapping[str, Curves]
    num_clients: Mapping[str, int]
    clients: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    primary_step: int = -1

    def reduced(self) -> Self:
        """Return the record without single clients."""
        return replace(self, clients={})

    def within(self, publication: Publication) -> Self | None:
        """Return the record without single clients, unless they are shown; None where evaluations are withheld."""
        if not publication.evaluation:
            return None
        return self if publication.client_curves else self.reduced()

    def after(self, curve: Sequence[float]) -> float:
        """Return a curve's value after s* steps; its last one where the record does not say which step that is."""
        return curve[self.primary_step if self.primary_step < len(curve) else -1]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """The run can go on from here.

    Attributes:
        round: server updates done.
    """

    kind: ClassVar[str] = "checkpoint"

    round: int


@dataclass(frozen=True, kw_only=True)
class CellFinished(Event):
    """A run of an experiment is over.

    Attributes:
        cell: name of its folder among the experiment's cells.
        entry: method and setting.
        seed: of the run.
        done: runs of this part of the experiment (tuning or final runs) that are over.
        total: runs of this part.
        ending: `complete`, `diverged` or `trained nothing`.
        seconds: that it took.
        seconds_left: until this part is done, estimated; None where it cannot be.
        results: group -> metric -> before, after s* steps.
    """

    kind: ClassVar[str] = "cell"

    cell: str
    entry: str
    seed: int
    done: int
    total: int
    ending: str
    seconds: float
    seconds_left: float | None = None
    results: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A line of text about the run.

    Attributes:
        text: printable.
        level: `info` or `warning`.
    """

    kind: ClassVar[str] = "note"
    is_minor: ClassVar[bool] = True

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, kw_only=True)
class SinkDropped(Event):
    """A reader of the stream was too slow, or failed.

    Attributes:
        sink: its name.
        dropped: events that it has missed so far.
    """

    kind: ClassVar[str] = "sink-dropped"

    sink: str
    dropped: int


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """A run is over for now.

    Attributes:
        status: as in summary.json (nufed.server.outcome).
        round: server updates done.
        reason: of a run that is not complete.
        folder: the run's folder.
        summary: content of summary.json.
    """

    status: str
    round: int
    reason: str = ""
    folder: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)

    def reduced(self) -> Self:
        """Return the record without the clients that did not answer the final evaluation, whose number stays."""
        evaluation = self.summary.get("final_evaluation")
        if not evaluation:
            return self
        return replace(self, summary={**self.summary, "final_evaluation": {**evaluation, "absent": {}}})


@dataclass(frozen=True, kw_only=True)
class Finished(Ended):
    """A run is complete."""

    kind: ClassVar[str] = "finished"


@dataclass(frozen=True, kw_only=True)
class Failed(Ended):
    """A run came to nothing: it diverged, has trained nothing, or met an error, after which it can be resumed."""

    kind: ClassVar[str] = "failed"


@dataclass(frozen=True, kw_only=True)
class Interrupted(Ended):
    """A run was stopped before its end; it can go on."""

    kind: ClassVar[str] = "interrupted"


EVENTS: dict[str, type[Event]] = {
    each.kind: each
    for each in (
        Started, Joined, Left, Phase, Asked, Replied, Rejected, RoundClosed, Evaluated, CheckpointSaved, CellFinished,
        Note, SinkDropped, Finished, Failed, Interrupted,
    )
}  # fmt: skip
"""Record by its name in `events.jsonl`."""


def from_json(values: Mapping[str, Any]) -> Event:
    """Return the record that `to_json` made these values of; fields that are unknown here are left out.

    Raises:
        ValueError: there is no such event, or a field is missing.
    """
    kind = EVENTS.get(str(values.get("event")))
    if kind is None:
        raise ValueError(f"unknown event {str(values.get('event'))[:60]!r}")
    names = {each.name for each in fields(kind)}
    try:
        return kind(**{name: _frozen(value) for name, value in values.items() if name in names})
    except TypeError as error:
        raise ValueError(f"an event {kind.kind!r} lacks fields ({error})") from error


def _frozen(value: Any) -> Any:
    """Return a JSON value with tuples for lists; null in a list of numbers is NaN again."""
    if isinstance(value, list):
        return tuple(math.nan if each is None else _frozen(each) for each in value)
    return {name: _frozen(each) for name, each in value.items()} if isinstance(value, dict) else value
