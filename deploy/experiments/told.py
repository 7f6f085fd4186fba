"""What an experiment tells while it goes on: `events.jsonl` in its folder, and one parent run with tracking tools."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nufed.common.config import Scalar
from nufed.common.durable_file import writing
from nufed.common.errors import NufedError
from nufed.common.events import EventStream, Failed, Finished, Interrupted, Started
from nufed.common.untrusted import printable
from nufed.server.events_file import EventsFile

if TYPE_CHECKING:
    from nufed.deploy.monitoring.tracking import TrackingSink

EXPERIMENT = "experiment"
"""What `Started.engine` says of an experiment."""

_BEGINNING = 60.0
"""Seconds that tracking tools have to begin the experiment's record, which its runs belong to."""


@dataclass(frozen=True)
class Trackers:
    """Tracking tools of an experiment's runs; goes to worker processes.

    Attributes:
        specs: what `--track` was given.
        parents: spec and the tool's own name of the experiment, for each tool that has begun.
    """

    specs: tuple[str, ...] = ()
    parents: tuple[tuple[str, str], ...] = ()

    @contextmanager
    def told(self, events: EventStream, out: Path, name: str) -> Iterator[None]:
        """Let the tools take a run's events in the block.

        Args:
            events: the run's.
            out: the experiment's folder.
            name: what the run is called there.
        """
        if not self.specs:
            yield
            return
        from nufed.deploy.monitoring.tracking import Place, tracked

        place = Place(dict(self.parents), name, out / "tensorboard" / name)
        with tracked(events, self.specs, place):
            yield


NO_TRACKERS = Trackers()


@contextmanager
def told_experiment(
    name: str, out: Path, options: dict[str, Scalar], specs: Sequence[str]
) -> Iterator[tuple[EventStream, Trackers]]:
    """Yield the stream that an experiment tells its events to, and the tracking tools of its runs.

    Args:
        name: of the suite.
        out: the experiment's folder.
        options: that all its runs share.
        specs: tracking tools.

    Raises:
        RunError: the folder cannot be made.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with EventStream() as events:
        events.run = out.resolve().name
        events.attach(EventsFile())
        with _parents(events, specs, out) as sinks:
            events.tell(
                Started,
                folder=str(out),
                options={"name": name, **options},
                engine=EXPERIMENT,
                first_round=1,
                num_rounds=0,
                measure="",
            )
            if sinks:
                events.flush(_BEGINNING)
            begun = [(spec, sink.run_id) for spec, sink in zip(specs, sinks, strict=True) if sink.run_id]
            try:
                yield events, Trackers(tuple(specs), tuple(begun))
            except BaseException as error:
                kind = Failed if isinstance(error, Exception) else Interrupted
                reason = str(error) if isinstance(error, NufedError) else type(error).__name__
                events.tell(kind, status="interrupted", round=0, reason=printable(reason), folder=str(out))
                raise
            events.tell(Finished, status="complete", round=0, folder=str(out))


@contextmanager
def _parents(events: EventStream, specs: Sequence[str], out: Path) -> "Iterator[list[TrackingSink]]":
    if not specs:
        yield []
        return
    from nufed.deploy.monitoring.tracking import Place, tracked

    with tracked(events, specs, Place(files=out / "tensorboard" / EXPERIMENT)) as sinks:
        yield sinks
