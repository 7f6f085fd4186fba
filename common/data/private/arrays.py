"""`npz:PATH` and `python:module:function`: a client's own data as arrays.

An archive is one of `common/data/npz.py`: `x` and `y`, or `x_train`, `y_train` and the client's own `x_test`, `y_test`;
where it says who made each example, user=NAME says which of them this client is. `class_names` and `feature_names` in
it must be the run's.

A function is called with the run's `TaskInfo` and returns `(inputs [N, ...], targets [N] or [N, K])`, arrays or
tensors: whole numbers are classes, floats values to predict; targets may be None where they are not known.
"""

import traceback
import zipfile
from pathlib import Path

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data import npz
from nufed.common.data.pool import Array, SourceRequest, Table
from nufed.common.data.private.rows import PrivateRows, number_rows, tell_here
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.data.private.task import split_names
from nufed.common.data.raw import as_array, as_targets, check_inputs, image_layout
from nufed.common.errors import ConfigError, DataError, NufedError
from nufed.common.examples import TaskInfo
from nufed.common.settings import Settings
from nufed.common.user_code import load_function


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
    if not labelled and (unlabelled := _inputs_alone(spec.path)) is not None:
        return PrivateRows(unlabelled, None, number_rows(unlabelled))
    pool = npz.load(SourceRequest(config, 0, Settings(), spec.argument))
    _check_names(spec.path, task, config)
    train = _own(pool.train, spec)
    test = None if pool.test is None else _rows(_own(pool.test, spec))
    rows = _rows(train)
    return PrivateRows(rows.inputs, rows.targets, rows.numbers, test=test)


def read_function(spec: PrivateSpec, task: TaskInfo) -> PrivateRows:
    """Return what the user's function makes.

    Raises:
        ConfigError: there is no such function.
        DataError: it raises something, or returns something else than examples.
    """
    function = load_function(spec.argument, "--data", DataError)
    try:
        made = function(task)
    except DataError as error:
        if error.__cause__ is None or isinstance(error.__cause__, NufedError):
            raise
        tell_here("%s", error)  # the words of the user's code may hold values
        raise DataError(
            f"expected {spec.text} to return examples, but it raised {_place(error.__cause__)}; this client's own log "
            "says more. Correct it there"
        ) from error
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(
            f"expected {spec.text} to return a pair (inputs, targets), but got {type(made).__name__}; return a pair"
        )
    inputs = image_layout(as_array(made[0], f"the inputs of {spec.text}"))
    check_inputs(inputs, f"the inputs of {spec.text}")
    if made[1] is None:
        return PrivateRows(inputs, None, number_rows(inputs))
    _, targets = as_targets(as_array(made[1], f"the targets of {spec.text}"), f"the targets of {spec.text}")
    if len(inputs) != len(targets):
        raise DataError(
            f"expected as many targets as inputs from {spec.text}, but got {len(targets)} and {len(inputs)}; give "
            "every example one target"
        )
    return PrivateRows(inputs, targets, number_rows(inputs))


def _rows(table: Table) -> PrivateRows:
    return PrivateRows(table.inputs, table.targets, number_rows(table.inputs))


def _own(table: Table, spec: PrivateSpec) -> Table:
    """Return the rows of the user that this client is; all of them where nobody or one user is named."""
    user = spec.options.get("user")
    if table.users is None:
        if user is not None:
            raise ConfigError(
                f"--data: user={user!r}, but {spec.path} does not say who made its examples. Leave it out."
            )
        return table
    if user is None:
        if len(np.unique(table.users)) > 1:
            tell_here("users of %s: %s", spec.path, ", ".join(table.user_names))
            raise ConfigError(
                f"--data {spec.text} holds the examples of {len(table.user_names)} users. Type ?user=NAME behind the "
                "path; this client's own log has the names."
            )
        return table
    if user not in table.user_names:
        tell_here("users of %s: %s", spec.path, ", ".join(table.user_names))
        raise ConfigError(
            f"--data: user={user!r} is none of the {len(table.user_names)} users in {spec.path}. This client's own log "
            "has their names."
        )
    rows = np.flatnonzero(table.users == table.user_names.index(user))
    return Table(table.inputs[rows], table.targets[rows])


def _inputs_alone(path: Path) -> Array | None:
    """Return `x` of an archive without `y`; None for any other file, which the ordinary way reads or refuses."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    with np.load(path, allow_pickle=False) as archive:
        if "x" not in archive.files or "y" in archive.files:
            return None
        try:
            stored = archive["x"]
        except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise DataError(f"expected 'x' in {path} to be a plain array of numbers; write it again") from error
    inputs = image_layout(as_array(stored, f"x in {path}"))
    check_inputs(inputs, f"x in {path}")
    return inputs


def _check_names(path: Path, task: TaskInfo, config: DataConfig) -> None:
    """Refuse an archive whose classes or features are not called as the run's."""
    expected = {"class_names": task.class_names, "feature_names": split_names(config.feature_names, "feature-names")}
    with np.load(path, allow_pickle=False) as archive:
        for key, names in expected.items():
            found = tuple(map(str, archive[key])) if key in archive.files else names
            if names and found != names:
                raise DataError(
                    f"expected the {key.replace('_', ' ')} of {path} to be the run's ({', '.join(names)}), but got "
                    f"{', '.join(found)}; renumber or rename them"
                )


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} ({Path(frame.filename).name}, line {frame.lineno})"
