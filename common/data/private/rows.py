"""A client's own examples as they were read, and the checks that they are what the run expects.

A refusal has two parts. What it says travels to the server: shapes, counts and the names that the run itself declares.
What was found (values, names of columns, folders and users, positions, paths) is logged on the client's own machine.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from nufed.common.data.array_trees import ArrayTree, is_tree, rows_of, spec_of, take_rows
from nufed.common.data.division import Names
from nufed.common.data.pool import Array
from nufed.common.data.private.task import Column
from nufed.common.data.task_of_arrays import INFERRED
from nufed.common.errors import LISTED, DataError, NufedError
from nufed.common.examples import InputSpec, TaskInfo, TensorSpec
from nufed.common.input_forms import described_inputs, is_named
from nufed.common.tasks import find_task

_log = logging.getLogger("nufed.private")

_Kind = TypeVar("_Kind", bound=NufedError)


@dataclass(frozen=True)
class PrivateRows:
    """N examples of one client, not yet split, filled in or scaled.

    Attributes:
        inputs: [N, ...], one array or several; uint8 with three or more dimensions are pixels; in a table NaN stands
            for what is missing.
        targets: [N, ...], as the task has them; None without labels.
        numbers: [N] position of each example in what was read, from 1.
        columns: of a table; empty otherwise.
        test: examples that the source itself keeps for the test; None leaves that to the run's fractions.
        groups: of each example, which all go to one split; None where examples do not belong together.
        parts: [N] positions in `membership.PARTS` of the split that the source itself says; None if it says none.
        users: whose each example is, in data of several clients; None in data of one.
    """

    inputs: ArrayTree
    targets: ArrayTree | None
    numbers: Array
    columns: tuple[Column, ...] = ()
    test: "PrivateRows | None" = field(default=None)
    groups: Names | None = None
    parts: Array | None = None
    users: Names | None = None

    def take(self, rows: Array) -> "PrivateRows":
        """Return the examples at `rows` [M], in that order; the source's own test part stays as it is."""

        def of(values: Array | None) -> Array | None:
            return None if values is None else values[rows]

        groups, users = (names and names.take(rows) for names in (self.groups, self.users))
        targets = None if self.targets is None else take_rows(self.targets, rows)
        return PrivateRows(
            *(take_rows(self.inputs, rows), targets, self.numbers[rows], self.columns, self.test),
            *(groups, of(self.parts), users),
        )

    def __len__(self) -> int:
        """Return N."""
        return rows_of(self.inputs)


def number_rows(inputs: ArrayTree) -> Array:
    """Return 1 … N."""
    return np.arange(1, rows_of(inputs) + 1)


def tell_here(text: str, *values: Any) -> None:
    """Log what must not leave this machine, for the person in front of it."""
    _log.warning(text, *values)


def refusal(kind: type[_Kind], told: str, here: str = "", *found: Any) -> _Kind:
    """Return an error to raise; log what was found.

    Args:
        kind: class of the error.
        told: counts and the run's own names; may be sent to the server.
        here: format of what was found; stays on this machine.
        found: values of the format.
    """
    if here:
        tell_here(here, *found)
    error = kind(told)
    error.sendable = True
    return error


def listed(names: Sequence[Any], limit: int = LISTED) -> str:
    """Return names in quotes, the first `limit` of them, for this machine's log."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(str(name))[:100] for name in names[:limit]) + more


def check_rows(rows: PrivateRows, task: TaskInfo) -> None:
    """Refuse examples that are not what the run expects.

    Raises:
        DataError: naming what differs: the shape, or how many labels are beyond the classes.
    """
    if is_tree(rows.inputs) or task.input_spec is not None:
        _check_forms(rows.inputs, task)
    elif (shape := rows.inputs.shape[1:]) != task.input_shape:
        raise refusal(
            DataError,
            f"expected inputs of shape {_dims(task.input_shape)}, as the run has them, but got {_dims(shape)}; bring "
            "the data to that shape",
        )
    if not len(rows):
        raise refusal(DataError, "expected examples, but there are none; check --data")
    if rows.targets is not None and task.kind in INFERRED:
        _check_targets(rows.targets, rows.numbers, task)
    elif rows.targets is not None and not is_tree(rows.targets):
        wanted, shape = find_task(task).target_shape, rows.targets.shape[1:]
        if shape != wanted:
            raise refusal(
                DataError,
                f"expected targets of shape {_dims(wanted)} for {task.kind}, as the run has them, but got "
                f"{_dims(shape)}; bring them to that shape",
            )
    if rows.test is not None:
        check_rows(rows.test, task)


def _check_forms(inputs: ArrayTree, task: TaskInfo) -> None:
    """Refuse inputs of other names, shapes or kinds of numbers than the run's; whole numbers may be booleans."""
    wanted = task.input_spec or TensorSpec(task.input_shape)
    found = spec_of(inputs, keep_integers=True) or TensorSpec(inputs.shape[1:])
    if _loosely(found) != _loosely(wanted):
        told = described_inputs(replace(task, input_spec=_renamed(found, _names_in(wanted))))
        raise refusal(
            DataError,
            f"expected inputs {described_inputs(task)}, as the run has them, but got {told}; bring the data to that "
            "form",
            "the inputs are %s",
            described_inputs(replace(task, input_spec=found)),
        )


def _names_in(spec: InputSpec) -> set[str]:
    if isinstance(spec, TensorSpec):
        return set()
    if not is_named(spec):
        return set().union(*map(_names_in, spec))
    return {name for name, _ in spec}.union(*(_names_in(part) for _, part in spec))


def _renamed(spec: InputSpec, known: Collection[str]) -> InputSpec:
    """Return a form in which inputs that the run does not name have a number in the place of their name."""
    if isinstance(spec, TensorSpec):
        return spec
    if not is_named(spec):
        return tuple(_renamed(part, known) for part in spec)
    return tuple(
        (name if name in known else f"input {number}", _renamed(part, known))
        for number, (name, part) in enumerate(spec, start=1)
    )


def _loosely(spec: InputSpec) -> InputSpec:
    if isinstance(spec, TensorSpec):
        return spec if spec.dtype != "boolean" else TensorSpec(spec.shape, "integer")
    return tuple(part if isinstance(part, str) else _loosely(part) for part in spec)


def _check_targets(targets: Array, numbers: Array, task: TaskInfo) -> None:
    kind = "classification" if targets.ndim == 1 and targets.dtype.kind in "iu" else "regression"
    if kind != task.kind:
        raise refusal(
            DataError,
            f"expected targets for {task.kind}, as the run has them, but got "
            f"{'class numbers' if kind == 'classification' else 'values'}; give classes as whole numbers or names, and "
            "values as floats",
        )
    if kind == "regression":
        if targets.shape[1] != task.num_outputs:
            raise refusal(
                DataError,
                f"expected {task.num_outputs} values to predict for each example, as the run has them, but got "
                f"{targets.shape[1]}; name that many label columns",
            )
        return
    beyond = (targets < 0) | (targets >= task.num_outputs)
    if beyond.any():
        first = int(np.flatnonzero(beyond)[0])
        raise refusal(
            DataError,
            f"expected labels from 0 to {task.num_outputs - 1} ({shown_names(task.class_names)}), as the run has them, "
            f"but {int(beyond.sum())} of {len(targets)} are beyond; correct these labels",
            "example %d has the label %d",
            numbers[first],
            targets[first],
        )


def told_column(column: Column, position: int) -> str:
    """Return what a refusal calls a column: by its name if the run declares it, else by its position among inputs."""
    return f"column {column.name!r}" if column.declared else f"input column {position + 1}"


def shown_names(names: Sequence[str]) -> str:
    """Return the run's names, the first of them where there are many."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _dims(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
