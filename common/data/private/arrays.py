"""`npz:PATH` and `python:module:function`: a client's own data as arrays.

An archive is one of `common/data/npz.py`: `x` and `y`, or `x_train`, `y_train` and the client's own `x_test`, `y_test`;
where it says who made each example, user=NAME says which of them this client is; where it has `group` (`group_train`,
`group_test`), examples of one group stay together. `class_names` and `feature_names` in it must be the run's.

A function is called with the run's `TaskInfo` and returns `(inputs [N, ...], targets [N, ...])` or `(inputs, targets,
groups [N])`, arrays or tensors; inputs may be a dict or tuple of them, and targets None where they are not known.
Targets are as the task has them, classes also as text (names of the run's classes); groups are whole numbers or text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data import npz
from nufed.common.data.archive import open_archive
from nufed.common.data.array_trees import ArrayTree, rows_of, take_rows
from nufed.common.data.pool import Table
from nufed.common.data.private.cells import Markers, NameColumn
from nufed.common.data.private.rows import PrivateRows, listed, number_rows, refusal, shown_names, tell_here
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.data.private.task import canonical, split_names
from nufed.common.data.raw import as_names, as_targets, decoded, plain_array
from nufed.common.data.task_of_arrays import INFERRED, read_inputs, read_targets
from nufed.common.errors import ConfigError, DataError, NufedError
from nufed.common.examples import TaskInfo
from nufed.common.user_code import load_function

_MISSING = "check the path"


def read_archive(spec: PrivateSpec, task: TaskInfo, config: DataConfig, *, labelled: bool) -> PrivateRows:
    """Return the examples of an archive.

    Args:
        spec: of kind npz.
        task: what the run expects.
        config: names the features, if the run does.
        labelled: whether there must be labels.

    Raises:
        ConfigError: it is not said, or not rightly, whose examples are this client's.
        DataError: the file cannot be read, or its names are not the run's.
    """
    with _explained("an archive of examples"):
        if not labelled and (unlabelled := _inputs_alone(spec.path)) is not None:
            return PrivateRows(unlabelled, None, number_rows(unlabelled))
        parts = npz.read_parts(spec.path, lambda stored, what: _targets(stored, what, task))
        _check_names(spec.path, parts.arrays, task, config)
    if new := parts.tables.get("_new"):
        tell_here("%d examples of x_new in %s are left out: they are other users'", len(new), spec.path)
    test = None if "_test" not in parts.tables else _rows(_own(parts.tables["_test"], spec))
    return replace(_rows(_own(parts.train, spec)), test=test)


def read_function(spec: PrivateSpec, task: TaskInfo) -> PrivateRows:
    """Return what the user's function makes.

    Raises:
        ConfigError: there is no such function.
        DataError: it raises something, or returns something else than examples.
    """
    function = load_function(spec.argument, "--data", DataError)
    try:
        made = function(task)
    except NufedError as error:
        cause = error.__cause__ or error
        raise refusal(
            DataError,
            "expected the function that --data names to return examples, but it raised something; this client's own "
            "log says what. Correct it there",
            "%s (%s)",  # the words of the user's code may hold values
            error,
            type(cause).__name__,
        ) from error
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        raise refusal(
            DataError,
            "expected the function that --data names to return a pair (inputs, targets), or (inputs, targets, groups), "
            "but got something else; return one of them",
            "%s returned %s",
            spec.argument,
            type(made).__name__,
        )
    with _explained("examples from the function that --data names"):
        inputs = read_inputs(made[0], "the inputs")
        targets = None if made[1] is None else _targets(made[1], "the targets", task)
        groups = None if len(made) == 2 else as_names(made[2], "the groups")
    for what, counted in (("target", targets), ("group", None if groups is None else groups.codes)):
        if counted is not None and rows_of(inputs) != rows_of(counted):
            raise refusal(
                DataError,
                f"expected as many {what}s as inputs, but got {rows_of(counted)} and {rows_of(inputs)}; give every "
                f"example one {what}",
            )
    return PrivateRows(inputs, targets, number_rows(inputs), groups=groups)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Let an error about arrays stay here, where its words name files and what is in them; the server hears `what`."""
    try:
        yield
    except DataError as error:
        if error.sendable:
            raise
        raise refusal(
            DataError,
            f"expected {what} that the run can use, but got something else; this client's own log says what is wrong",
            "%s",
            error,
        ) from error


def _targets(values: Any, what: str, task: TaskInfo) -> ArrayTree:
    """Return targets [N, ...] as the task has them; text is the names of classes."""
    if task.kind not in INFERRED:
        return read_targets(values, task.kind, what)[1]
    stored = plain_array(values, what)
    if task.kind == "regression" or stored.dtype.kind not in "US" or stored.ndim != 1:
        return as_targets(stored, what)[1]
    column = NameColumn(task.class_names, Markers())
    names = decoded(stored)
    codes = column.read(names.tolist(), np.arange(1, len(names) + 1))
    if others := int(np.isnan(codes).sum()):
        first = int(np.flatnonzero(np.isnan(codes))[0])
        raise refusal(
            DataError,
            f"expected the run's classes as targets ({shown_names(task.class_names)}), but {others} of {len(codes)} "
            "are others; correct them",
            "example %d has the label %r",
            first + 1,
            names[first],
        )
    return codes.astype(np.int64)


def _rows(table: Table) -> PrivateRows:
    return PrivateRows(table.inputs, table.targets, number_rows(table.inputs), groups=table.groups)


def _own(table: Table, spec: PrivateSpec) -> Table:
    """Return the rows of the user that this client is; all of them where nobody or one user is named."""
    user = spec.options.get("user")
    if table.users is None:
        if user is not None:
            raise refusal(ConfigError, "--data: user= is given, but the archive does not say who made its examples.")
        return table
    if user is None and len(np.unique(table.users)) <= 1:
        return table
    if user not in table.user_names:
        tell_here("users of %s: %s", spec.path, listed(table.user_names))
        count = len(table.user_names)
        given = f"--data names the examples of {count} users" if user is None else f"user= is none of the {count} users"
        raise refusal(ConfigError, f"{given}. Type ?user=NAME behind the path; this client's own log has their names.")
    rows = np.flatnonzero(table.users == table.user_names.index(user))
    groups = None if table.groups is None else table.groups.take(rows)
    return Table(take_rows(table.inputs, rows), take_rows(table.targets, rows), groups=groups)


def _inputs_alone(path: Path) -> ArrayTree | None:
    """Return `x` of an archive without `y`; None for any other file, which the ordinary way reads or refuses."""
    with open_archive(path, _MISSING) as archive:
        names = npz.input_names(archive.names, "").values()
        if not names or "y" in archive.names:
            return None
        stored = {name: archive.read(name) for name in names}
    return npz.inputs_in(path, stored, "")


def _check_names(path: Path, arrays: npz.Arrays, task: TaskInfo, config: DataConfig) -> None:
    """Refuse an archive whose classes or features are not called as the run's."""
    expected = {"class_names": task.class_names, "feature_names": split_names(config.feature_names, "feature-names")}
    for key, names in expected.items():
        found = npz.names_in(path, arrays, key) if key in arrays else names
        if names and tuple(map(canonical, found)) != tuple(map(canonical, names)):
            raise refusal(
                DataError,
                f"expected the {key.replace('_', ' ')} of the archive to be the run's ({shown_names(names)}), but they "
                "are others, or in another order; renumber or rename them",
                "%s of %s: %s",
                key,
                path,
                listed(found),
            )
