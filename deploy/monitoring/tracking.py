"""Tracking a run with the tools of researchers: `--track tensorboard | mlflow[:URI] | wandb`.

A tracker is told the configuration, metrics by round for both groups, and the files that a run leaves. It works in a
sink's own thread: a server that is down costs the tracker its records, and the run nothing.
"""

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nufed.common.config import Scalar
from nufed.common.durable_file import write_json
from nufed.common.errors import ConfigError, RunError, nearest_match_hint
from nufed.common.events import CellFinished, Ended, Evaluated, Event, EventStream, RoundClosed, Started
from nufed.common.json_text import parse_object

TRACKED = "tracking.json"
PATIENCE = 60.0
"""Seconds that a tracker has at the end of a run, e.g. to send its files."""

_PAUSE = 60.0
"""Seconds after a failure in which a tracker is not tried again."""

_WRITING = threading.Lock()  # trackers note their names in one file

_FILES = (
    "summary.json", "config.json", "clients.csv", "curves.png", "model.safetensors", "experiment.json", "results.csv",
    "report.html",
)  # fmt: skip


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run at its beginning.

    Attributes:
        name: what it is called.
        folder: where it is written.
        options: the run's options.
        first_round: above 1 where an earlier run goes on.
        earlier: the tracker's own name of that run; empty for a new one, or where it is not known.
        parent: the tracker's own name of the experiment that the run belongs to; empty for none.
        is_parent: whether it is an experiment, which runs belong to.
        place: where a tracker that writes files keeps them.
    """

    name: str
    folder: Path
    options: Mapping[str, Scalar]
    first_round: int = 1
    earlier: str = ""
    parent: str = ""
    is_parent: bool = False
    place: Path = field(default_factory=Path)


@dataclass(frozen=True)
class Place:
    """Where a run stands in an experiment.

    Attributes:
        parents: spec -> the tool's own name of the experiment.
        name: what the run is called; empty for its folder's name.
        files: where trackers that write files keep them; None is the run's folder.
    """

    parents: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    files: Path | None = None


class Tracker(Protocol):
    """Records one run with one tool; what it raises is told once, and the run goes on."""

    def begin(self, run: TrackedRun) -> str:
        """Begin, or go on with, a run, and return the tool's own name of it."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers of a round."""

    def end(self, status: str, files: Sequence[Path]) -> None:
        """Record how the run ended, with the files that it has left."""


@dataclass(frozen=True)
class _Tool:
    title: str
    module: str
    build: Callable[[str], Tracker]
    takes_address: bool = False


def _tensorboard(_address: str) -> Tracker:
    from nufed.deploy.monitoring.tensorboard_tracker import TensorBoardTracker

    return TensorBoardTracker()


def _mlflow(address: str) -> Tracker:
    from nufed.deploy.monitoring.mlflow_tracker import MlflowTracker

    return MlflowTracker(address)


def _wandb(_address: str) -> Tracker:
    from nufed.deploy.monitoring.wandb_tracker import WandbTracker

    return WandbTracker()


TOOLS = {
    "tensorboard": _Tool("TensorBoard", "tensorboard", _tensorboard),
    "mlflow": _Tool("MLflow", "mlflow", _mlflow, takes_address=True),
    "wandb": _Tool("Weights & Biases", "wandb", _wandb),
}
"""Tracking tools by the names that `--track` takes; each is an extra of the same name."""


def check_tracking(specs: Sequence[str]) -> tuple[str, ...]:
    """Return the trackers that are asked for, each once, after checking that they are known and installed.

    Raises:
        ConfigError: one is not; with the command that installs it.
    """
    for spec in specs:
        name, _, address = spec.partition(":")
        if name not in TOOLS:
            raise ConfigError(f"Unknown tracker {spec[:60]!r} behind --track.{nearest_match_hint(name, TOOLS)}")
        tool = TOOLS[name]
        if (address or spec.endswith(":")) and not (tool.takes_address and address):
            raise ConfigError(f"--track {name} takes no address here, got {spec[:60]!r}. Type --track {name}.")
        if importlib.util.find_spec(tool.module) is None:
            raise ConfigError(
                f"--track {name} needs {tool.title}, which is not installed: pip install 'nufed[{name}]'."
            )
    return tuple(dict.fromkeys(specs))


@contextmanager
def tracked(events: EventStream, specs: Sequence[str], place: Place | None = None) -> Iterator[list["TrackingSink"]]:
    """Let trackers take a stream's events, until the stream or the block ends.

    Args:
        events: the run's events.
        specs: as `check_tracking` returns them.
        place: the run's place in an experiment; None for a run of its own.
    """
    sinks = [TrackingSink(spec, number, place or Place()) for number, spec in enumerate(specs)]
    for sink in sinks:
        events.attach(sink, patience=PATIENCE)
    try:
        yield sinks
    finally:
        for sink in sinks:
            events.detach(sink)


class TrackingSink:
    """Hands a run's events to a tracker; holds what the run is called there."""

    kinds = (Started, RoundClosed, Evaluated, CellFinished, Ended)

    def __init__(self, spec: str, number: int, place: Place) -> None:
        """Track with a tool.

        Args:
            spec: the tool, and its server's address.
            number: which of the run's trackers it is.
            place: the run's place in an experiment.
        """
        tool, _, address = spec.partition(":")
        self.name = TOOLS[tool].title
        self.run_id = ""
        self._key = f"{tool}-{number}"
        self._tracker = TOOLS[tool].build(address)
        self._parent, self._place = place.parents.get(spec, ""), place
        self._started: Started | None = None
        self._paused_until = float("-inf")

    def handle(self, event: Event) -> None:
        """Hand an event on; after a failure, those of the next minute are missed.

        Raises:
            Exception: whatever the tool raises.
        """
        if isinstance(event, Started):
            self._started, self.run_id = event, ""
        if time.monotonic() < self._paused_until and not (self.run_id and isinstance(event, Ended)):
            raise RunError("it failed a short while ago")
        try:
            self._hand_on(event)
        except BaseException:
            self._paused_until = time.monotonic() + _PAUSE
            raise

    def close(self) -> None:
        """Do nothing: `Ended` has ended the record."""

    def _hand_on(self, event: Event) -> None:
        if self._started is None:
            return
        if not self.run_id:
            self.run_id = self._begin(self._started)
        if isinstance(event, RoundClosed):
            self._tracker.log(event.round, _of_round(event))
        elif isinstance(event, Evaluated):
            self._tracker.log(event.round, _of_evaluation(event))
        elif isinstance(event, CellFinished):
            self._tracker.log(event.done, {"experiment/seconds": event.seconds, "experiment/done": float(event.done)})
        elif isinstance(event, Ended):
            folder = Path(self._started.folder)
            files = [folder / name for name in _FILES if (folder / name).is_file()]
            self._tracker.end("failed" if event.kind == "failed" else event.status, files)
            self._started = None

    def _begin(self, event: Started) -> str:
        folder = Path(event.folder)
        run = TrackedRun(
            name=self._place.name or event.run,
            folder=folder,
            options=event.options,
            first_round=event.first_round,
            earlier=_known_names(folder).get(self._key, "") if event.first_round > 1 else "",
            parent=self._parent,
            is_parent=event.engine == "experiment",
            place=self._place.files or folder / "tensorboard",
        )
        name = self._tracker.begin(run)
        with _WRITING:
            write_json(folder / TRACKED, {**_known_names(folder), self._key: name})
        return name


def _known_names(folder: Path) -> dict[str, Any]:
    """Return what trackers call the run in a folder, by tracker."""
    try:
        return parse_object((folder / TRACKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _of_round(event: RoundClosed) -> dict[str, float]:
    unused = [event.rejected, event.failed, event.missing]
    numbers = {
        "training/loss": event.loss,
        "training/replied": event.replied,
        "training/not-used": None if None in unused else sum(number or 0 for number in unused),
        "training/dropped": event.dropped or None,
        "costs/simulated-seconds": event.simulated_seconds,
        "costs/bytes-up": event.bytes_up,
        "costs/bytes-down": event.bytes_down,
        "costs/seconds": event.seconds,
        "privacy/epsilon": event.epsilon,
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def _of_evaluation(event: Evaluated) -> dict[str, float]:
    return {
        f"{group}/{metric}/{adaptation}": float(value)
        for group, curves in event.groups.items()
        for metric, curve in curves.items()
        for adaptation, value in (("before", curve[0]), ("after", event.after(curve)))
    }
