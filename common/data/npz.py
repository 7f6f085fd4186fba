"""`npz:PATH`: a NumPy archive of the user's own.

One table: `x` [N, ...] and `y` [N] (whole numbers are classes, floats values to predict), optionally `user` [N].
Or three parts: `x_train`, `y_train`, optionally `user_train`; `x_test`, `y_test`, `user_test` on which clients are
judged; `x_new`, `y_new`, `user_new` with users who are new clients. Users are names, or numbers into `user_names`
(`user_new_names` for the new ones). `class_names` and `feature_names` are used in outputs and messages.

uint8 inputs of three or more dimensions are pixels: [N, H, W] or [N, H, W, C] become [N, C, H, W], scaled to [0, 1].
Everything else is taken as it is: standardize tabular features before writing the file. Licence, units and origin are
those of the file. Archives are read without pickle, so opening one runs no code.
"""

import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from nufed.common.data.pool import Array, Pool, SourceRequest, Table
from nufed.common.data.raw import as_array, as_targets, check_inputs, image_layout
from nufed.common.errors import DataError
from nufed.common.examples import TaskInfo, TaskKind

Arrays = dict[str, Array]


def describe(request: SourceRequest) -> TaskInfo:
    """Return the task from the targets and the header of the inputs; the inputs are not read."""
    path = _path(request)
    with _open(path) as archive:
        suffix = _suffixes(path, archive.files)[0]
        arrays = _read(path, archive, [name for name in archive.files if name.startswith(("y", "class_names"))])
    return _task(path, arrays, _layout_in_header(path, f"x{suffix}").shape[1:])


def load(request: SourceRequest) -> Pool:
    """Return the archive's tables.

    Raises:
        DataError: the file or an array is missing or malformed, or inputs lack values.
    """
    path = _path(request)
    with _open(path) as archive:
        suffixes = _suffixes(path, archive.files)
        arrays = _read(path, archive, archive.files)
    _check_user_arrays(path, arrays, suffixes)
    parts = {suffix: _table(path, arrays, suffix) for suffix in suffixes}
    first = parts[suffixes[0]]
    for suffix, part in parts.items():
        if part.inputs.shape[1:] != first.inputs.shape[1:]:
            raise DataError(
                f"expected x{suffix} in {path} to have inputs of shape {list(first.inputs.shape[1:])}, as the other "
                f"part, but got {list(part.inputs.shape[1:])}; bring them to one shape"
            )
    return Pool(
        _task(path, arrays, first.inputs.shape[1:]),
        train=first,
        test=parts.get("_test"),
        new=parts.get("_new"),
    )


def _path(request: SourceRequest) -> Path:
    return Path(request.argument).expanduser().absolute()


def _open(path: Path) -> "np.lib.npyio.NpzFile":
    if not path.is_file():
        raise DataError(f"expected a NumPy archive at {path}, but there is no such file; check data.source=npz:PATH")
    if not zipfile.is_zipfile(path):
        raise DataError(f"expected a NumPy archive, but {path} is none; write it with numpy.savez_compressed")
    return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]


def _read(path: Path, archive: "np.lib.npyio.NpzFile", names: list[str]) -> Arrays:
    arrays = {}
    for name in names:
        try:
            arrays[name] = archive[name]
        except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise DataError(
                f"expected {name!r} in {path} to be a plain array, but it cannot be read ({error}); "
                "write arrays of numbers or strings, not objects"
            ) from error
    return arrays


def _layout_in_header(path: Path, name: str) -> Array:
    """Return an array without rows that is otherwise like the one in the archive."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        version = npy_format.read_magic(member)
        read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, _, dtype = read_header(member)
    return image_layout(np.empty((0, *shape[1:]), dtype))


def _suffixes(path: Path, names: list[str]) -> list[str]:
    """Return the endings of the array names of each part, the training part first."""
    if {"x", "y"} <= set(names):
        return [""]
    if {"x_train", "y_train"} <= set(names):
        suffixes = ["_train"]
        for suffix in ("_test", "_new"):
            halves = [name for name in (f"x{suffix}", f"y{suffix}") if name in names]
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


def _table(path: Path, arrays: Arrays, suffix: str) -> Table:
    inputs = image_layout(as_array(arrays[f"x{suffix}"], f"x{suffix} in {path}"))
    _, targets = as_targets(as_array(arrays[f"y{suffix}"], f"y{suffix} in {path}"), f"y{suffix} in {path}")
    features = tuple(map(str, arrays["feature_names"])) if "feature_names" in arrays else ()
    check_inputs(inputs, f"x{suffix} in {path}", features if inputs.shape[1:] == (len(features),) else ())
    users = arrays.get(f"user{suffix}")
    for name, array in ((f"y{suffix}", targets), (f"user{suffix}", users)):
        if array is not None and len(array) != len(inputs):
            raise DataError(
                f"expected as many rows in {name} as in x{suffix} of {path}, but got {len(array)} and {len(inputs)}; "
                "write one of each for every example"
            )
    if users is None:
        return Table(inputs, targets)
    return Table(inputs, targets, *_users(path, arrays, suffix))


def _users(path: Path, arrays: Arrays, suffix: str) -> tuple[Array, tuple[str, ...]]:
    """Return (index of the user of each row [N], names); training and test part share their users."""
    users = arrays[f"user{suffix}"]
    names = arrays.get("user_new_names" if suffix == "_new" else "user_names")
    if names is not None and users.dtype.kind in "iu":
        if len(users) and not 0 <= users.min() <= users.max() < len(names):
            raise DataError(
                f"expected user{suffix} in {path} to number the {len(names)} names from 0, but got numbers from "
                f"{users.min()} to {users.max()}; renumber them"
            )
        return users.astype(np.int64), tuple(map(str, names))
    together = [
        arrays[key]
        for key in (["user_new"] if suffix == "_new" else ["user", "user_train", "user_test"])
        if key in arrays
    ]
    known = np.unique(np.concatenate(together))
    return np.searchsorted(known, users), tuple(map(str, known))


def _task(path: Path, arrays: Arrays, input_shape: tuple[int, ...]) -> TaskInfo:
    kinds: dict[str, tuple[TaskKind, Array]] = {
        name: as_targets(as_array(array, f"{name} in {path}"), f"{name} in {path}")
        for name, array in arrays.items()
        if name in ("y", "y_train", "y_test", "y_new")
    }
    if len({(kind, targets.shape[1:]) for kind, targets in kinds.values()}) > 1:
        raise DataError(f"expected {', '.join(kinds)} in {path} to be of one kind and shape; convert them")
    kind, targets = next(iter(kinds.values()))
    if kind == "regression":
        return TaskInfo(kind, tuple(input_shape), targets.shape[1])
    num_classes = 1 + max(int(part.max(initial=0)) for _, part in kinds.values())
    names = tuple(map(str, arrays["class_names"])) if "class_names" in arrays else tuple(map(str, range(num_classes)))
    if len(names) < num_classes:
        raise DataError(
            f"expected class numbers below {len(names)}, the length of class_names in {path}, but some are beyond; "
            "name every class"
        )
    return TaskInfo(kind, tuple(input_shape), len(names), names)
