"""How long, how large and how often: the limits that every target keeps."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import settings

from nufed.common.errors import NufedError

SECONDS = 5.0
"""Of processor time, which a loaded machine does not lengthen; of waiting, `PATIENCE`."""
PATIENCE = 60.0
MEMORY = 2**30


def examples(in_suite: int) -> int:
    """Return how many examples a target tries: `in_suite` in the suite, the profile's in `make fuzz`."""
    return in_suite if settings.get_current_profile_name() != "fuzz" else settings.default.max_examples


@contextmanager
def limits() -> Iterator[list[NufedError]]:
    """Fail on more than 5 s of work, a minute of waiting, 1 GB, or any exception but a NufedError.

    A NufedError is put into the list given.
    """
    caught: list[NufedError] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = [(number, signal.signal(number, _too_slow)) for number in (signal.SIGALRM, signal.SIGPROF)]
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield caught
    except NufedError as error:
        caught.append(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before:
            signal.signal(number, handler)


class TooSlowError(BaseException):
    """Not an Exception, so that no handler under test swallows it."""


def _too_slow(_number: int, _frame: object) -> None:
    raise TooSlowError(f"more than {SECONDS:g} s of work, or {PATIENCE:g} s of waiting")
