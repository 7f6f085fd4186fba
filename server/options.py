"""Where and how a run is conducted, beside its own options: `ServerOptions`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nufed.common.events import EventStream
from nufed.server.control import RunControl
from nufed.server.hostile import Hostile


@dataclass(frozen=True)
class ServerOptions:
    """Where a run is written, who is told of it and who may end it.

    Attributes:
        out: folder that the run's folder is made in.
        resume: an earlier run's folder to go on in; None starts a new one.
        events: takes what happens; whoever made it attaches sinks, and closes it after the run.
        control: may end the run after a round.
        min_clients: clients to wait for before the first round; None waits for all that the configuration names.
        connect_timeout: seconds to wait for them.
        engine: what runs the clients, as environment.json shall say: an engine of the simulation, or `fleet`.
        is_disposable: whether the run is one of many that is started anew if it is cut short: it leaves a checkpoint
            at its end alone, does not wait for the disk, and draws nothing.
        is_trial: whether the run's model is of no further use, as that of a search's trial: no client keeps a personal
            model of it, and nothing is drawn.
        hostile: clients of a simulation that attack, and count in no mean over clients.
        attachments: further files of the run's folder, by name: content.
    """

    out: Path
    resume: Path | None = None
    events: EventStream = field(default_factory=EventStream)
    control: RunControl = field(default_factory=RunControl)
    min_clients: int | None = None
    connect_timeout: float = 600.0
    engine: str = "fleet"
    is_disposable: bool = False
    is_trial: bool = False
    hostile: Hostile | None = None
    attachments: Mapping[str, str] = field(default_factory=dict)
