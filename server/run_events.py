"""What a run tells of itself while it goes on: from its rounds and evaluations to the stream's records."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.errors import NufedError
from nufed.common.events import (
    CheckpointSaved,
    Ended,
    Evaluated,
    Event,
    EventStream,
    Failed,
    Finished,
    Interrupted,
    Phase,
    RoundClosed,
    Started,
)
from nufed.common.events.event import PhaseName
from nufed.common.examples import Group
from nufed.common.params import Params
from nufed.common.privacy.publishing import Publication
from nufed.common.untrusted import printable
from nufed.server.client_curves import ClientCurves
from nufed.server.events_file import EventsFile
from nufed.server.outcome import Status
from nufed.server.round_record import client_scores, event_fields, group_metrics
from nufed.server.run_folder import RunFolder
from nufed.server.withholding import shown_reason


class RunEvents:
    """Tells the events of one run; holds the stream, where the run is, and whether its end was told."""

    def __init__(self, stream: EventStream, config: RunConfig, num_rounds: int) -> None:
        """Tell a run of `num_rounds` rounds to `stream`."""
        self.stream, self._config, self._num_rounds = stream, config, num_rounds
        stream.publication = Publication.of(config)
        self._round, self._folder = 0, ""
        self._is_ended = False

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write the events of the block to the run's folder, and tell of an end that was told by nobody else.

        Of an error that is none of ours, its kind alone is told: its text may hold anything.
        """
        record = EventsFile()
        self.stream.attach(record)
        try:
            yield
        except BaseException as error:
            if not self._is_ended:
                is_ours = isinstance(error, NufedError | KeyboardInterrupt)
                kind = Failed if isinstance(error, Exception) else Interrupted
                reason = shown_reason(error, self.stream.publication) if is_ours else type(error).__name__
                self._tell_end(kind, "interrupted", reason, {})
            raise
        finally:
            self.stream.detach(record)

    def started(self, folder: RunFolder, first_round: int, params: Params, *, engine: str, measure: str) -> None:
        """Tell that the first round is about to begin."""
        self._round, self._folder = first_round - 1, str(folder.path)
        self.stream.run = folder.path.name
        self.stream.tell(
            Started,
            folder=self._folder,
            options=self._config.flat(),
            engine=engine,
            first_round=first_round,
            num_rounds=self._num_rounds,
            measure=measure,
            primary_step=self._config.evaluation.primary_step,
            num_parameters=sum(tensor.numel() for tensor in params.values()),
        )

    @contextmanager
    def phase(self, name: PhaseName, round_number: int) -> Iterator[None]:
        """Tell that a phase begins and ends around the block."""
        opened = time.perf_counter()
        self.stream.tell(Phase, phase=name, round=round_number)
        yield
        self.stream.tell(Phase, phase=name, round=round_number, seconds=time.perf_counter() - opened)

    def evaluated(
        self,
        round_done: int,
        groups: Mapping[Group, Mapping[str, Any] | None],
        curves: Sequence[ClientCurves],
        *,
        seconds: float,
        final: bool,
    ) -> None:
        """Tell what an evaluation has shown; `groups` are those of summary.json."""
        found = {name: group for name, group in groups.items() if group}
        self.stream.tell(
            Evaluated,
            round=round_done,
            final=final,
            groups={name: group_metrics(group) for name, group in found.items()},
            num_clients={name: group["num_clients"] for name, group in found.items()},
            clients=client_scores(curves, self._config.evaluation.primary_step),
            primary_step=self._config.evaluation.primary_step,
            seconds=seconds,
        )

    def checkpoint_saved(self, round_done: int) -> None:
        """Tell that the run can go on from here."""
        self.stream.tell(CheckpointSaved, round=round_done)

    def round_closed(self, record: Mapping[str, Any]) -> None:
        """Tell of a round by its line of metrics.jsonl."""
        self._round = record["round"]
        self.stream.tell(RoundClosed, num_rounds=self._num_rounds, **event_fields(record))

    def ended(self, status: Status, cause: BaseException | None, summary: Mapping[str, Any]) -> None:
        """Tell how the run ended, once its results are written."""
        self._round = summary["rounds"]
        kinds: dict[Status, type[Event]] = {"complete": Finished, "diverged": Failed, "nothing-trained": Failed}
        is_failure = isinstance(cause, NufedError) and status != "budget-spent"
        stopped = Failed if is_failure else Interrupted
        self._tell_end(kinds.get(status, stopped), status, shown_reason(cause, self.stream.publication), summary)

    def _tell_end(self, kind: type[Event], status: str, reason: str, summary: Mapping[str, Any]) -> None:
        assert issubclass(kind, Ended)  # noqa: S101 - our bug
        self._is_ended = True
        self.stream.tell(
            kind, status=status, round=self._round, reason=printable(reason), folder=self._folder, summary=summary
        )
