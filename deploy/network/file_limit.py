"""How many connections a server can hold: each is an open file, and without any left a run cannot be written."""

import os
from pathlib import Path

_RESERVE = 192
"""Open files that are not for connections: libraries, threads' pipes, and what a run is written to."""

_FEWEST = 32
_NEARLY = 0.8
_OPEN_FILES = Path("/proc/self/fd")


def raise_file_limit() -> int | None:
    """Raise this process's limit of open files as far as it may, and return it; None where there is none."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            hard = soft  # some systems name a higher limit than they grant
    return None if hard == resource.RLIM_INFINITY else hard


def most_connections(file_limit: int | None) -> int | None:
    """Return how many connections leave the rest of the process enough files; None for as many as come."""
    return None if file_limit is None else max(_FEWEST, file_limit - _RESERVE)


def is_crowded(file_limit: int | None) -> bool:
    """Return whether most of the files that this process may open are open, where the system tells."""
    if file_limit is None or not _OPEN_FILES.is_dir():
        return False
    return len(os.listdir(_OPEN_FILES)) > _NEARLY * (file_limit - _RESERVE)  # noqa: PTH208 - a path for each: 10 x as long
