"""A run's events.jsonl: its events, one JSON object per line, bounded in size.

It is what a page shows of a run that is over, and is read while it grows; nothing is computed from it. So it is written
behind the run's back and does not wait for the disk: what `--resume` needs is in metrics.jsonl. A run that goes on adds
to it, after a last line that may have been cut short.

Bounded: once the file has `LIMIT_OF_CLIENTS` bytes, records of single clients are left out and the others lose what
they say of single clients; beyond `LIMIT`, nothing is written but how the run begins and ends.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from nufed.common.errors import RunError
from nufed.common.events import Ended, Event, Note, Started, from_json
from nufed.common.json_text import json_ready, parse_object

EVENTS = "events.jsonl"
LIMIT_OF_CLIENTS = 32 * 2**20
LIMIT = 128 * 2**20
_BEFORE_START = 10_000
_LONGEST_LINE = 4 * 2**20
_encode = json.JSONEncoder(allow_nan=False).encode  # json.dumps would make an encoder for each event


class EventsFile:
    """A sink that writes a run's events; holds the open file, and what came before there was a folder."""

    name = EVENTS
    kinds = None

    def __init__(self, limit_of_clients: int = LIMIT_OF_CLIENTS, limit: int = LIMIT) -> None:
        """Write once `Started` says where.

        Args:
            limit_of_clients: bytes after which single clients are left out.
            limit: bytes after which only beginnings and endings are written.
        """
        self._limit_of_clients, self._limit = limit_of_clients, limit
        self._early: list[Event] = []
        self._file: IO[bytes] | None = None
        self._size = 0
        self._is_reduced = False

    def handle(self, event: Event) -> None:
        """Write an event.

        Raises:
            OSError: the system refuses.
        """
        if isinstance(event, Started):
            self._open(Path(event.folder) / EVENTS)
            early, self._early = self._early, []
            for each in early:
                self._write(replace(each, run=event.run))
        if self._file is not None:
            self._write(event)
        elif len(self._early) < _BEFORE_START:
            self._early.append(event)
        if isinstance(event, Ended):
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, path: Path) -> None:
        self.close()
        self._file = path.open("ab+", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)
        if self._size:
            self._file.seek(self._size - 1)
            if self._file.read(1) != b"\n":  # the line that a killed process was about to write
                self._size += self._file.write(b"\n")

    def _write(self, event: Event) -> None:
        if self._size >= self._limit and not isinstance(event, Started | Ended):
            return
        if self._size >= self._limit_of_clients:
            if not self._is_reduced:
                self._is_reduced = True
                text = f"{EVENTS} has {self._size} bytes: from here on it leaves out single clients (see metrics.jsonl)"
                self._append(Note(run=event.run, text=text))
            if event.is_minor:
                return
            event = event.reduced()
        self._append(event)

    def _append(self, event: Event) -> None:
        left = memoryview(event_line(event))
        while left and self._file is not None:
            written = self._file.write(left)
            self._size += written
            left = left[written:]


def event_line(event: Event) -> bytes:
    """Return an event as a line of ASCII; characters of other alphabets and control characters are JSON escapes."""
    values = event.to_json()
    try:
        text = _encode(values)
    except (ValueError, TypeError):  # a number that is not finite, or no plain one
        text = _encode(json_ready(values))
    return text.encode() + b"\n"


def read_events(folder: Path) -> Iterator[Event]:
    """Yield the events of a run's folder; lines that were cut short or are of another version are left out.

    Raises:
        RunError: the file cannot be read.
    """
    path = folder / EVENTS
    try:
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                try:
                    yield from_json(parse_object(line))
                except ValueError:
                    continue
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"Expected the run's events in {path}, but they cannot be read ({error.strerror}).") from error
