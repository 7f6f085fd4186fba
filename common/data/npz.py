"""`npz:PATH`: a NumPy archive of the user's own.

One table: `x` [N, ...] and `y` [N] (whole numbers are classes, floats values to predict), optionally `user` [N].
Or three parts: `x_train`, `y_train`, optionally `user_train`; `x_test`, `y_test`, `user_test` on which clients are
judged; `x_new`, `y_new`, `user_new` with users who are new clients. Users are names, or numbers into `user_names`
(`user_new_names` for the new ones). Several arrays in the place of `x`, called `x_NAME` (`x_train_NAME`, …), are the
inputs that a model takes as `model(NAME=…)`; they keep their types. `data.task` says what `y` is where it is neither
classes nor values. `group` [N] (`group_train`, `group_test`, `group_new`), names or whole numbers,
says which examples go to one split of a client together. `class_names` and `feature_names` are used in outputs and
messages.

uint8 inputs of three or more dimensions are pixels: [N, H, W] or [N, H, W, C] become [N, C, H, W], scaled to [0, 1].
Everything else is taken as it is: standardize tabular features before writing the file. Licence, units and origin are
those of the file. Archives are read without pickle, so opening one runs no code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data.archive import open_archive
from nufed.common.data.array_trees import ArrayTree, named_arrays, rows_of
from nufed.common.data.pool import Array, Pool, SourceRequest, Table
from nufed.common.data.raw import as_names, class_notes, count_classes, decoded, image_layout
from nufed.common.data.task_of_arrays import (
    INFERRED,
    input_form,
    read_inputs,
    read_targets,
    task_of_arrays,
    wanted_kind,
)
from nufed.common.errors import DataError
from nufed.common.examples import TaskInfo, TaskKind

Arrays = dict[str, Array]
ReadTargets = Callable[[Array, str], Array]
"""Targets as stored, what to call them -> targets [N, ...]."""


@dataclass(frozen=True)
class Parts:
    """An archive, checked: its tables by the endings of their arrays' names, the training part first."""

    tables: dict[str, Table]
    arrays: Arrays

    @property
    def train(self) -> Table:
        """Return the part to train on."""
        return next(iter(self.tables.values()))


def describe(request: SourceRequest) -> TaskInfo:
    """Return the task from the targets and the header of the inputs; the inputs are not read."""
    path = _path(request)
    with open_archive(path, _MISSING) as archive:
        suffix = _suffixes(path, archive.names)[0]
        arrays = {name: archive.read(name) for name in archive.names if name.startswith(("y", "class_names"))}
        parts = input_names(archive.names, suffix)
        layouts = {part: image_layout(archive.empty_like(name)) for part, name in parts.items()}
    return _task(path, arrays, layouts.get("", layouts), request.config)


def load(request: SourceRequest) -> Pool:
    """Return the archive's tables.

    Raises:
        DataError: the file or an array is missing or malformed, or inputs lack values.
    """
    path, kind = _path(request), wanted_kind(request.config)
    parts = read_parts(path, lambda stored, what: read_targets(stored, kind, what)[1])
    tables, task = parts.tables, _task(path, parts.arrays, parts.train.inputs, request.config)
    targets = [table.targets for table in tables.values()]
    is_told = "class_names" in parts.arrays or task.kind not in INFERRED
    notes = () if is_told else class_notes(task, targets, request.config.source)
    return Pool(task, train=parts.train, test=tables.get("_test"), new=tables.get("_new"), notes=notes)


def read_parts(path: Path, targets_of: ReadTargets) -> Parts:
    """Return the archive at a path.

    Args:
        path: of the file.
        targets_of: turns what stands in `y` into targets.

    Raises:
        DataError: the file or an array is missing or malformed, or inputs lack values.
    """
    with open_archive(path, _MISSING) as archive:
        suffixes = _suffixes(path, archive.names)
        arrays = {name: archive.read(name) for name in archive.names}
    _check_user_arrays(path, arrays, suffixes)
    parts = {suffix: _table(path, arrays, suffix, targets_of) for suffix in suffixes}
    first = _shapes(parts[suffixes[0]])
    for suffix, part in parts.items():
        if (own := _shapes(part)) != first:
            differs = next(name for name in (*first, *own) if first.get(name) != own.get(name))
            raise DataError(
                f"expected {'_'.join(filter(None, (f'x{suffix}', differs)))} in {path} to have inputs of shape "
                f"{first.get(differs)}, as the other part, but got {own.get(differs)}; bring them to one shape"
            )
    return Parts(parts, arrays)


def _shapes(table: Table) -> dict[str, list[int]]:
    return {place: list(array.shape[1:]) for place, array in named_arrays(table.inputs)}


def input_names(names: Sequence[str], suffix: str) -> dict[str, str]:
    """Return what each array of the inputs of a part is called in an archive, by the model's argument.

    One array alone has the name "".
    """
    if f"x{suffix}" in names:
        return {"": f"x{suffix}"}
    prefix = f"x{suffix}_"
    found = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {part: name for part, name in found.items() if suffix or part.partition("_")[0] not in _PARTS}


def inputs_in(path: Path, arrays: Arrays, suffix: str, features: tuple[str, ...] = ()) -> ArrayTree:
    """Return the inputs of a part, checked: one array, or a dict of several.

    Raises:
        DataError: they are malformed, or lack values.
    """
    parts = {part: arrays[name] for part, name in input_names(list(arrays), suffix).items()}
    return read_inputs(parts.get("", parts), f"x{suffix} in {path}", features)


def names_in(path: Path, arrays: Arrays, key: str) -> tuple[str, ...]:
    """Return the names in an array such as `class_names`.

    Raises:
        DataError: it is no list of names.
    """
    names = arrays[key]
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise DataError(
            f"expected {key} in {path} to be names of shape [K], but got {names.dtype} of shape {list(names.shape)}; "
            "write a list of text"
        )
    return tuple(map(str, decoded(names)))


_MISSING = "check the path"
_PARTS = ("train", "test", "new")


def _path(request: SourceRequest) -> Path:
    return Path(request.argument).expanduser().absolute()


def _suffixes(path: Path, names: list[str]) -> list[str]:
    """Return the endings of the array names of each part, the training part first."""
    if "y" in names and input_names(names, ""):
        return [""]
    if "y_train" in names and input_names(names, "_train"):
        suffixes = ["_train"]
        for suffix in ("_test", "_new"):
            given = [f"x{suffix}"] * bool(input_names(names, suffix))
            halves = given + [f"y{suffix}"] * (f"y{suffix}" in names)
            if len(halves) == 1:
                raise DataError(
                    f"expected x{suffix} and y{suffix} in {path}, but found only {halves[0]}; add the other"
                )
            suffixes += [suffix] if halves else []
        return suffixes
    raise DataError(
        f"expected the arrays x and y, or x_train and y_train, in {path}, but found "
        f"{', '.join(sorted(names)) or 'nothing'}; rename them"
    )


def _check_user_arrays(path: Path, arrays: Arrays, suffixes: list[str]) -> None:
    """Refuse parts without users beside parts with users, and new examples without users."""
    wanted = [f"user{suffix}" for suffix in suffixes]
    missing = [name for name in wanted if name not in arrays]
    if missing and (len(missing) < len(wanted) or "_new" in suffixes):
        raise DataError(
            f"expected {', '.join(wanted)} in {path}, but {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing; say who made each example in every part, or in none and "
            "leave out x_new"
        )
    for name in wanted:
        if name in arrays and (arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iuU"):
            raise DataError(
                f"expected {name} in {path} to be names or whole numbers of shape [N], but got "
                f"{arrays[name].dtype} of shape {list(arrays[name].shape)}; convert it"
            )


def _table(path: Path, arrays: Arrays, suffix: str, targets_of: ReadTargets) -> Table:
    targets = targets_of(arrays[f"y{suffix}"], f"y{suffix} in {path}")
    features = names_in(path, arrays, "feature_names") if "feature_names" in arrays else ()
    inputs = inputs_in(path, arrays, suffix, features)
    size, users, key = rows_of(inputs), arrays.get(f"user{suffix}"), f"group{suffix}"
    groups = as_names(arrays[key], f"{key} in {path}") if key in arrays else None
    codes = None if groups is None else groups.codes
    for name, array in ((f"y{suffix}", targets), (f"user{suffix}", users), (key, codes)):
        if array is not None and len(array) != size:
            raise DataError(
                f"expected as many rows in {name} as in x{suffix} of {path}, but got {len(array)} and {size}; "
                "write one of each for every example"
            )
    table = Table(inputs, targets, groups=groups)
    if users is None:
        return table
    codes, names = _users(path, arrays, suffix)
    return replace(table, users=codes, user_names=names)


def _users(path: Path, arrays: Arrays, suffix: str) -> tuple[Array, tuple[str, ...]]:
    """Return (index of the user of each row [N], names); training and test part share their users."""
    users = arrays[f"user{suffix}"]
    key = "user_new_names" if suffix == "_new" else "user_names"
    if key in arrays and users.dtype.kind in "iu":
        names = names_in(path, arrays, key)
        if len(users) and not 0 <= users.min() <= users.max() < len(names):
            raise DataError(
                f"expected user{suffix} in {path} to number the {len(names)} names from 0, but got numbers from "
                f"{users.min()} to {users.max()}; renumber them"
            )
        return users.astype(np.int64), names
    together = [
        arrays[key]
        for key in (["user_new"] if suffix == "_new" else ["user", "user_train", "user_test"])
        if key in arrays
    ]
    known = np.unique(np.concatenate(together))
    return np.searchsorted(known, users), tuple(map(str, known))


def _task(path: Path, arrays: Arrays, inputs: ArrayTree, config: DataConfig) -> TaskInfo:
    wanted = wanted_kind(config)
    kinds: dict[str, tuple[TaskKind, Array]] = {
        name: read_targets(array, wanted, f"{name} in {path}")
        for name, array in arrays.items()
        if name in ("y", "y_train", "y_test", "y_new")
    }
    if len({(kind, targets.shape[1:]) for kind, targets in kinds.values()}) > 1:
        raise DataError(f"expected {', '.join(kinds)} in {path} to be of one kind and shape; convert them")
    kind, numbers = next(iter(kinds.values()))[0], [part for _, part in kinds.values()]
    input_shape, input_spec = input_form(inputs, config)
    if kind not in INFERRED:
        task = task_of_arrays(kind, inputs, numbers, config, f"y in {path}")
        names = names_in(path, arrays, "class_names") if "class_names" in arrays else task.class_names
        return replace(task, num_outputs=len(names) or task.num_outputs, class_names=names)
    if kind == "regression":
        return TaskInfo(kind, input_shape, numbers[0].shape[1], input_spec=input_spec)
    if "class_names" not in arrays:
        num_classes = count_classes(numbers, f"y in {path}", "or give class_names, a name for each")
        return TaskInfo(kind, input_shape, num_classes, tuple(map(str, range(num_classes))), input_spec)
    names = names_in(path, arrays, "class_names")
    if len(names) < 1 + max(int(part.max(initial=0)) for part in numbers):
        raise DataError(
            f"expected class numbers below {len(names)}, the length of class_names in {path}, but some are beyond; "
            "name every class"
        )
    return TaskInfo(kind, input_shape, len(names), names, input_spec)
