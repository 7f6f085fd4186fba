"""Whether a process writes to a run's folder: it holds a lock on the folder, which ends with the process."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from nufed.common.errors import RunError

Writer = Literal["somebody", "nobody", "unknown"]

_PATIENCE = 0.3
"""Seconds for which a folder may be held by somebody who only asks who holds it."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from the folder, where the system has file locks.

    Raises:
        RunError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise RunError(
            f"Expected to write to {path}, but the system refused ({error.strerror}). Change its permissions."
        ) from error
    try:
        deadline = time.monotonic() + _PATIENCE
        with suppress(OSError):  # a file system without locks
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() < deadline:
                        time.sleep(_PATIENCE / 10)
                        continue
                    raise RunError(
                        f"Expected {path} to be free, but another process is writing this run. Wait for it, or end it, "
                        "and go on."
                    ) from error
        yield
    finally:
        os.close(descriptor)


def writer_of(path: Path) -> Writer:
    """Return whether a process writes to the folder; `unknown` where the system has no file locks, or hides them."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return "unknown"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "somebody"
    except OSError:
        return "unknown"
    finally:
        os.close(descriptor)
    return "nobody"
