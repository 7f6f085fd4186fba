"""What simulated clients keep between rounds, as a part of the checkpoint: `client-states/PARTITION-ROUND.safetensors`.

In a deployment each client keeps its own, and the server has none of it. In a simulation the run folder stands for the
clients' disks: what a client kept after its last round is in one file, written when it changes, before the checkpoint
that names it with its checksum. Files that no checkpoint names are removed. So there are as many files as clients that
have taken part, each as large as what one keeps (its head, its body or a whole model), and those of one round more
while a checkpoint is written. They stay with the checkpoint of a run that is over, which can be given more rounds.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nufed.common.client_states import RUN_ID, StateFile
from nufed.common.config import RunConfig
from nufed.common.durable_file import writing
from nufed.common.errors import RunError
from nufed.common.json_text import parse_object
from nufed.common.params import Params
from nufed.server.hostile import ENVIRONMENT

FOLDER = "client-states"

Listing = Mapping[str, list[Any]]
"""Partition -> [round, SHA-256 of the file], of clients that keep something."""

_ADVICE = "Put back the folder as the run left it, or start a new run without --resume."


class Keeping(Protocol):
    """A grid that has the clients' states: a simulation."""

    def kept_rounds(self) -> Mapping[int, int]:
        """Return partition -> round of what its client keeps."""

    def kept_state(self, partition: int) -> Params:
        """Return what a client keeps."""

    def restore_state(self, partition: int, round_number: int, kept: Params) -> None:
        """Give a client what it kept after a round."""


@dataclass
class ClientStates:
    """Holds which files of a run folder are those of the clients' newest states.

    Attributes:
        grid: a simulation whose clients keep something; None where clients keep it themselves, or nothing.
        listing: what the last checkpoint names.
        told: what messages say of the run to clients that keep something, once its folder is known.
    """

    grid: Keeping | None
    listing: dict[str, list[Any]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, grid: object, config: RunConfig, *, is_disposable: bool) -> "ClientStates":
        """Return the states of a run's clients; runs that are never gone on with write none."""
        keeps = config.method.client_state != "none" and hasattr(grid, "kept_rounds") and not is_disposable
        return cls(grid if keeps else None)  # type: ignore[arg-type] # it was looked at

    def restore(self, folder: Path | None, listing: Listing | None, round_done: int) -> None:
        """Give all clients what they kept at a checkpoint, where a folder is gone on with.

        Raises:
            RunError: it is missing, changed, or was not written.
        """
        if folder is None:
            return
        self.told = told_of(folder)
        if self.grid is None:
            return
        if listing is None:
            if round_done:
                raise RunError(
                    f"Expected what clients keep between rounds (method.client-state) with the checkpoint of {folder}, "
                    "but the run has left none, as runs of an experiment do. Start a new run."
                )
            return
        for partition, (number, digest) in listing.items():
            path = folder / FOLDER / _name(partition, number)
            try:
                found = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise RunError(f"Expected {path}, which the checkpoint names, but cannot read it. {_ADVICE}") from error
            if found != digest:
                raise RunError(f"Expected {path} as the checkpoint was written after, but it differs. {_ADVICE}")
            self.grid.restore_state(int(partition), number, StateFile.read(path).versions[number])
        self.listing = {partition: list(entry) for partition, entry in listing.items()}

    @contextmanager
    def written(self, folder: Path) -> Iterator[Listing | None]:
        """Write what has changed and yield the listing for the checkpoint, which is written inside; then clean up.

        Raises:
            RunError: a file cannot be written.
        """
        if self.grid is None:
            yield None
            return
        with writing(folder / FOLDER):
            (folder / FOLDER).mkdir(exist_ok=True)
        for partition, number in self.grid.kept_rounds().items():
            if self.listing.get(str(partition), [None])[0] != number:
                path = folder / FOLDER / _name(partition, number)
                StateFile({number: self.grid.kept_state(partition)}, {"partition": partition}).write(path)
                self.listing[str(partition)] = [number, hashlib.sha256(path.read_bytes()).hexdigest()]
        yield dict(self.listing)
        named = {_name(partition, number) for partition, (number, _) in self.listing.items()}
        with writing(folder / FOLDER):
            for path in (folder / FOLDER).iterdir():
                if path.name not in named:
                    path.unlink(missing_ok=True)


def told_of(folder: Path) -> dict[str, str]:
    """Return what a run is called towards clients that keep something; nothing for runs of which they keep nothing."""
    try:
        described = parse_object((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {RUN_ID: str(described[RUN_ID])} if RUN_ID in described else {}


def _name(partition: int | str, number: int) -> str:
    return f"{partition}-{number}.safetensors"
