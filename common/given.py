"""Data, models, tasks and metrics given in Python: a run's options name them by their content.

`data.source`, `model.name`, `data.task` and the metrics are then `given:FINGERPRINT`. The objects are known inside a
`with given(...)` block; the worker processes of a simulation read them from the folder that the environment names
(`NUFED_GIVEN`), a temporary one of this user's.
"""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nufed.common.errors import RunError
from nufed.common.settings import process_settings

GIVEN = "given"
_ARGUMENTS = {"data": "dataset", "metric": "metrics"}  # of nufed.load_run, where not called as the thing itself
_KNOWN: dict[str, Any] = {}  # filled and emptied by `given` alone


def is_given(name: str) -> bool:
    """Return whether a data source, a model, a task or a metric was given in Python."""
    return name.startswith(f"{GIVEN}:")


@contextmanager
def given(objects: Mapping[str, Any]) -> Iterator[None]:
    """Make objects known by name inside the block; blocks may lie in one another."""
    before = {name: _KNOWN[name] for name in objects if name in _KNOWN}
    _KNOWN.update(objects)
    try:
        yield
    finally:
        for name in objects:
            del _KNOWN[name]
        _KNOWN.update(before)


def find_given(name: str, failure: type[Exception], what: str) -> Any:
    """Return the object of that name.

    Args:
        name: `given:FINGERPRINT`.
        failure: what is raised where it is not known.
        what: `data`, `model`, `task` or `metric`, for the message.

    Raises:
        RunError: a worker process cannot read what its parent left for it.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    folder = process_settings().given
    if folder is None or not (file := given_file(folder, name)).is_file():
        raise failure(
            f"expected the {what} that the run was started with, but {name} was given in Python and is not in a file. "
            f"Go on in Python: nufed.load_run(FOLDER, {_ARGUMENTS.get(what, what)}=...)."
        )
    try:
        return pickle.loads(file.read_bytes())  # noqa: S301 - written by the process that started this one
    except Exception as error:  # what a user's class raises when it is made again
        raise RunError(
            f"Expected a worker process to read the {what} given in Python, but {type(error).__name__} was raised: "
            f"{error}. Use the engine local, or put the code into a module and give its name, module:function."
        ) from error


def given_file(folder: Path, name: str) -> Path:
    """Return where an object lies for worker processes."""
    return folder / f"{name.replace(':', '-')}.pickle"
