"""A run's metrics.jsonl: one JSON object per round, of which a checkpoint knows how much there was and its checksum."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from nufed.common.durable_file import writing
from nufed.common.errors import RunError
from nufed.common.json_text import json_ready, parse_object
from nufed.server.checkpoint import LogMark

METRICS = "metrics.jsonl"


class RunLog:
    """Holds the open log, its size and its checksum so far."""

    def __init__(self, path: Path, held: ExitStack, kept: int | None = None) -> None:
        """Open a log to write at its end.

        Args:
            path: of the file, which is made if it is not there.
            held: closes the file.
            kept: bytes to keep of what is there; None keeps all.

        Raises:
            RunError: the file cannot be written to.
        """
        self._path = path
        with writing(path):
            self._file: IO[bytes] = held.enter_context(path.open("ab", buffering=0))
            if kept is not None and kept < self._file.tell():
                self._file.truncate(kept)
                os.fsync(self._file.fileno())
            content = path.read_bytes()
        self._size, self._digest = len(content), hashlib.sha256(content)

    @property
    def mark(self) -> LogMark:
        """How much there is."""
        return LogMark(self._size, self._digest.hexdigest())

    def append(self, record: Mapping[str, Any], *, durable: bool) -> None:
        """Add one line and, if `durable`, wait for the disk; NaN and infinities become null.

        Raises:
            RunError: the disk is full or does not answer; the line may be there in part.
        """
        line = (json.dumps(json_ready(record), allow_nan=False, ensure_ascii=False) + "\n").encode()
        with writing(self._path):
            left = memoryview(line)
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]
            if durable:
                os.fsync(self._file.fileno())
        self._size += len(line)
        self._digest.update(line)


def log_mark(content: bytes) -> LogMark:
    """Return the mark of a log with this content."""
    return LogMark(len(content), hashlib.sha256(content).hexdigest())


def read_log(path: Path) -> bytes:
    """Return the content of a log; nothing if there is none.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunError(f"Expected the run's log in {path}, but it cannot be read ({error.strerror}).") from error


def log_records(path: Path, content: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """Return each whole line of a log with its record; a last line that was cut short is left out.

    Args:
        path: of the log, for messages.
        content: of the log.

    Raises:
        RunError: a line is no JSON object with a round.
    """
    records = []
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            break
        try:
            record = parse_object(line)
            record["round"] += 0
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"Expected one JSON object with a round in line {number} of {path}, but {error}. Put back a copy that "
                "is whole, or start a new run."
            ) from error
        records.append((line, record))
    return records
