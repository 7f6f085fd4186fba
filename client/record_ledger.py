"""What a client's records have cost so far, in a file of its own: a line for each round, written before it is trained.

Lines are only ever added, and each is on the disk before a number is computed from data, so that nothing leaves this
machine unaccounted, whatever is killed when. A round that a server asks for twice is two lines: it is trained twice,
with fresh noise. Budgets are of the data, so that they count what all runs have spent, of all servers.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from nufed.client.split_memory import named_file
from nufed.common.config import Scalar
from nufed.common.durable_file import sync_folder, write_through, writing
from nufed.common.errors import ConfigError
from nufed.common.json_text import parse_object
from nufed.common.privacy.accounting import SampledGaussian

FORMAT = "nufed-record-privacy-1"
ENDING = ".privacy"
"""Of the file beside a personal model, or beside --state."""

Steps = dict[SampledGaussian, int]


@dataclass(frozen=True)
class Charge:
    """What one round costs.

    Attributes:
        run: which run it belongs to: a hash of its options, so that a resumed run is itself.
        round: k.
        steps: how often each mechanism runs in it.
    """

    run: str
    round: int
    steps: Steps

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        steps = [{**asdict(step), "count": count} for step, count in self.steps.items()]
        return {"format": FORMAT, "run": self.run, "round": self.round, "steps": steps}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Charge":
        """Return what `to_json` wrote.

        Raises:
            ValueError: it is none.
        """
        if values.get("format") != FORMAT:
            raise ValueError("it is no round of a privacy ledger")
        try:
            rows = [dict(row) for row in values["steps"]]
            counts = [int(row.pop("count")) for row in rows]
            steps = {SampledGaussian(**row): count for row, count in zip(rows, counts, strict=True)}
            return cls(str(values["run"]), int(values["round"]), steps)
        except (KeyError, TypeError, ConfigError) as error:
            raise ValueError(f"a round is incomplete: {error}") from error


class RecordLedger:
    """Holds the file's path, or the charges themselves where there is no file: then they are forgotten at the end."""

    def __init__(self, path: Path | None) -> None:
        """Use the file at `path`, made when the first round is charged, or by `try_writing`."""
        self._path = path
        self._charges: list[Charge] = []

    def charges(self) -> list[Charge]:
        """Return what was charged so far.

        Raises:
            ConfigError: the file is something else, or was damaged.
        """
        if self._path is None:
            return list(self._charges)
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
            return [Charge.from_json(parse_object(line.decode())) for line in _whole_lines(content)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"Expected {self._path} to be what a client's records have cost (--privacy-ledger), but it is not "
                f"({error}). Put back a copy that is whole; without it nobody knows what was spent."
            ) from error

    def try_writing(self) -> None:
        """Make the file if there is none, so that a folder that cannot be written is found before a round.

        Raises:
            RunError: it cannot be written.
        """
        if self._path is not None:
            with writing(self._path), _opened(self._path):
                pass

    @contextmanager
    def spending(self) -> Iterator["Spending"]:
        """Keep other processes of this client away from the file, from reading it to adding to it.

        Raises:
            ConfigError: as `charges`.
            RunError: the file cannot be written.
        """
        if self._path is None:
            yield Spending(list(self._charges), self._charges.append)
            return
        with writing(self._path), _opened(self._path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield Spending(self.charges(), lambda charge: _append(file, charge))


@dataclass(frozen=True)
class Spending:
    """A ledger that nobody else writes to now.

    Attributes:
        before: what was charged so far.
        add: writes one more charge down; it is on the disk when this returns.
    """

    before: list[Charge]
    add: Any


def ledger_path(node_config: Mapping[str, Scalar]) -> Path | None:
    """Return where a deployed client's ledger is: `privacy-ledger`, or beside its state or personal model; else None.

    Raises:
        ConfigError: the folder does not exist.
    """
    if path := named_file(node_config, "privacy-ledger"):
        return path
    for key in ("state", "personal-model"):
        if beside := node_config.get(key):
            return Path(str(beside)).expanduser().with_suffix(ENDING)
    return None


def _whole_lines(content: bytes) -> list[bytes]:
    """Return the lines of a file but for a last one that was cut short: no round was trained on its account."""
    return content.split(b"\n")[:-1]


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    is_new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        if is_new:
            sync_folder(path.parent)
        yield file


def _append(file: IO[bytes], charge: Charge) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    whole = file.read(size).rfind(b"\n") + 1
    if whole < size:  # what was left of a line when somebody was killed
        file.truncate(whole)
    write_through(file, json.dumps(charge.to_json()).encode() + b"\n")
