"""How long simulated clients train, in seconds of simulated time (federation.client-speeds).

    lognormal:SIGMA       exp(SIGMA x) for each client, x standard normal: half of them take less than 1 s
    slow:SHARE:FACTOR     1 s, and FACTOR s for a SHARE of the participating clients, who are drawn
    file:PATH             a CSV file with the columns `client` and `seconds`, a line for each participating client
    python:MODULE:NAME    a function of (names, seed) that returns seconds by name, or a list in the order of names,
                          which are those of the participating clients

What a client takes is the same in every round, and follows from the run's seed.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nufed.common.errors import ConfigError
from nufed.common.regular_file import open_regular
from nufed.common.rng import numpy_generator
from nufed.common.user_code import load_function

OPTION = "federation.client-speeds"
LONGEST = 1e9
"""Seconds."""

_FORMS = "lognormal:SIGMA, slow:SHARE:FACTOR, file:PATH or python:MODULE:FUNCTION"
_LARGEST_FILE = 2**26


def client_seconds(
    speeds: str, num_participating: int, num_clients: int, *, seed: int, names: Callable[[], Sequence[str]]
) -> list[float]:
    """Return how long each client trains, by partition; clients that take no part in training are new ones.

    Args:
        speeds: as above.
        num_participating: clients that train; the others follow them.
        num_clients: in all.
        seed: of the run.
        names: returns the names of all clients, by partition; those that train are the first.

    Raises:
        ConfigError: with what is expected.
    """
    kind, _, argument = speeds.partition(":")
    if kind == "lognormal":
        (sigma,) = _numbers(speeds, argument, 1)
        if not 0 <= sigma <= 10:
            raise _refused(speeds, "SIGMA from 0 to 10")
        return [float(x) for x in np.exp(sigma * numpy_generator(seed, "client-speeds").standard_normal(num_clients))]
    if kind == "slow":
        share, factor = _numbers(speeds, argument, 2)
        if not (0 <= share <= 1 and 0 < factor <= LONGEST):
            raise _refused(speeds, f"a SHARE from 0 to 1 and a FACTOR above 0, at most {LONGEST:g}")
        drawn = numpy_generator(seed, "client-speeds").permutation(num_participating)
        slow = set(drawn[: round(share * num_participating)].tolist())
        return [factor if index in slow else 1.0 for index in range(num_clients)]
    if kind not in ("file", "python") or not argument:
        raise _refused(speeds, _FORMS)
    participating = list(names())[:num_participating]
    found = _read(speeds, Path(argument)) if kind == "file" else load_function(argument, OPTION)(participating[:], seed)
    return _by_name(speeds, found, participating) + [1.0] * (num_clients - num_participating)


def _numbers(speeds: str, argument: str, count: int) -> list[float]:
    try:
        found = [float(part) for part in argument.split(":")]
    except ValueError:
        found = []
    if len(found) != count or not all(map(math.isfinite, found)):
        raise _refused(speeds, _FORMS)
    return found


def _refused(speeds: str, expected: str) -> ConfigError:
    return ConfigError(f"{OPTION}={speeds!r} is refused. Expected {expected}.")


def _read(speeds: str, path: Path) -> dict[str, str]:
    try:
        with open_regular(path) as file:
            content = file.read(_LARGEST_FILE + 1)
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"Expected a CSV file at {path} ({OPTION}), but {error}. Check the path.") from error
    if len(content) > _LARGEST_FILE:
        raise _refused(speeds, f"a CSV file of at most {_LARGEST_FILE} bytes")
    if not {"client", "seconds"} <= set(reader.fieldnames or ()):
        raise _refused(speeds, "a CSV file whose first line names the columns client and seconds")
    found: dict[str, str] = {}
    for row in rows:
        if (name := str(row["client"])) in found:
            raise _refused(speeds, f"a line for each client, but {name!r} has several")
        found[name] = str(row["seconds"])
    return found


def _as_numbers(speeds: str, found: Any, names: Sequence[str]) -> list[float]:
    """Return numbers; what is none is told by its place and type, not repeated: it may be of somebody's data."""
    if not isinstance(found, Iterable) or isinstance(found, str | bytes):
        raise _refused(speeds, f"a number of seconds for every client, but got type {type(found).__name__}")
    seconds: list[float] = []
    try:
        for each in found:
            seconds.append(float(each))  # noqa: PERF401 - how far it came is told
    except (TypeError, ValueError):
        told = repr(names[len(seconds)]) if len(seconds) < len(names) else "one beyond the last client"
        raise _refused(speeds, f"a number of seconds for every client, but that of {told} is none") from None
    return seconds


def _by_name(speeds: str, found: Any, names: Sequence[str]) -> list[float]:
    """Return the seconds of each name, checked."""
    if isinstance(found, Mapping):
        if lacking := [name for name in names if name not in found]:
            raise ConfigError(
                f"{OPTION}={speeds!r} has no seconds for {len(lacking)} of {len(names)} clients, {lacking[0]!r} among "
                "them. Give them for every client."
            )
        found = [found[name] for name in names]
    seconds = _as_numbers(speeds, found, names)
    if len(seconds) != len(names):
        raise _refused(speeds, f"{len(names)} numbers of seconds, one for every client, but got {len(seconds)}")
    for name, each in zip(names, seconds, strict=True):
        if not 0 < each <= LONGEST:  # nor NaN
            raise _refused(speeds, f"seconds above 0, at most {LONGEST:g}, but {name!r} has {each!r}")
    return seconds
