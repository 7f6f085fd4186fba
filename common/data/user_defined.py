"""`python:module:function`: a federation of the user's own, in code.

The function is called with `(config: DataConfig, seed: int)` and returns either

* a dict from client name to `(inputs [N, ...], targets [N, ...])`, arrays or tensors: whole-number targets are classes,
  floats values to predict, unless `data.task` says otherwise. Inputs may be a tuple or a dict of arrays, which keep
  their types: a model is called with them as `model(*inputs)` or `model(**inputs)`. As many clients as asked for are
  chosen at random, and split by the configured fractions. With a third value, `groups` [N] of names or whole numbers,
  the examples of one group go to one split together; or
* a `nufed.common.data.on_demand.Population(task, names, make)`, for populations that no memory holds: `make(name)`
  returns such a pair, or the three, when the client is first asked for something. Clients are chosen and split as
  those of a dict. Scales that all clients share are found on the first `NUM_POOLED` participating ones; or
* a `nufed.common.examples.Federation` with its own splits, `num_clients` participating clients first, then the new
  ones.

The module may lie in the working directory. Licence, units and origin are the user's to state.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nufed.common.config import DataConfig
from nufed.common.data.array_trees import (
    ArrayTree,
    concatenate,
    first_array,
    map_arrays,
    named_arrays,
    rows_of,
    spec_of,
)
from nufed.common.data.dealing import divided
from nufed.common.data.dealt_client import SMALLEST_CLIENT, DealtClient, split_client, too_small
from nufed.common.data.division import names_of
from nufed.common.data.on_demand import Population
from nufed.common.data.pool import DealtFederation, Pool, SourceRequest, Table
from nufed.common.data.raw import as_array, as_names, as_targets, check_inputs, class_notes
from nufed.common.data.task_of_arrays import INFERRED, read_inputs, read_targets, task_of_arrays, wanted_kind
from nufed.common.errors import DataError
from nufed.common.examples import ClientData, Examples, Federation, Group, TaskInfo, TaskKind, TensorSpec
from nufed.common.given import find_given
from nufed.common.input_forms import described_inputs
from nufed.common.rng import numpy_generator
from nufed.common.tasks import find_task
from nufed.common.user_code import load_function

NUM_POOLED = 200
"""Clients of a population that shared scales are found on."""


def load(request: SourceRequest) -> Pool | DealtFederation:
    """Return what the function made, checked.

    Raises:
        ConfigError: there is no such function.
        DataError: naming the client whose examples are not as described above.
    """
    made = load_function(request.argument, "data.source", DataError)(request.config, request.seed)
    if isinstance(made, Federation):
        return _checked_federation(made, request)
    if isinstance(made, Population):
        return _deal_population(made, request)
    if not isinstance(made, Mapping) or not made:
        raise DataError(
            f"expected {request.config.source} to return a Federation, or a dict of clients that is not empty, but got "
            f"{type(made).__name__ if not isinstance(made, Mapping) else 'an empty one'}; see common/data/"
            "user_defined.py"
        )
    return pool_of_clients(made, request.config)


def _deal_population(made: Population, request: SourceRequest) -> DealtFederation:
    config, seed, names = request.config, request.seed, sorted(made)
    if len(names) < request.num_total:
        raise DataError(
            f"expected {request.num_total} users (data.num-clients={config.num_clients}, data.num-new-clients="
            f"{config.num_new_clients}), but {config.source} has {len(names)}; lower these numbers"
        )
    # As clients of a dict are chosen, so that the two ways of giving them are one federation.
    order = numpy_generator(seed, "data", "users", "participating and new").permutation(len(names))[: request.num_total]
    kind = wanted_kind(config)

    def identify(partition_id: int) -> tuple[str, Group]:
        return names[order[partition_id]], "participating" if partition_id < config.num_clients else "new"

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        name, group = identify(partition_id)
        given = _given(name, made[name], kind)
        table = divided(_table([given]))
        dealt = DealtClient(name, group, table, np.arange(len(table)))
        if problem := too_small(dealt):
            raise DataError(
                f"expected client {name!r} to have enough examples, but it {problem}; leave this client out"
            )
        client = split_client(dealt, made.task, config, seed, dtype)
        _check_client(client, made.task)
        return client

    return DealtFederation(made.task, len(order), make_client, identify=identify, num_pooled=NUM_POOLED)


def load_given(request: SourceRequest) -> Pool | DealtFederation:
    """Return the clients that were given in Python (`nufed.common.given`), checked when they were given.

    Raises:
        DataError: they are not known in this process, or a Federation does not fit the numbers of clients.
    """
    made = find_given(request.config.source, DataError, "data")
    if isinstance(made, Federation):
        return _checked_federation(made, request)
    pool: Pool = made
    return pool


@dataclass(frozen=True)
class _Given:
    """One client as the function gave it, checked on its own."""

    name: str
    kind: TaskKind
    inputs: ArrayTree
    targets: ArrayTree
    groups: tuple[str, ...] | None = None

    @property
    def form(self) -> str:
        """Return what must be the same for every client."""
        grouped = ", with groups" * (self.groups is not None)
        return f"{self.kind}, {_forms(self.inputs, 'inputs')}, {_shapes(self.targets, 'targets')}{grouped}"


def _forms(tree: ArrayTree, what: str) -> str:
    told = []
    for place, array in named_arrays(tree):
        kind = array.dtype.kind
        number = "uint8" if array.dtype == np.uint8 else {"f": "floating-point"}.get(kind, "whole-number")
        told.append(f"{number} {place or what} {list(array.shape[1:])}")
    return ", ".join(told)


def _shapes(tree: ArrayTree, what: str) -> str:
    return ", ".join(f"{place or what} {list(array.shape[1:])}" for place, array in named_arrays(tree))


def pool_of_clients(made: Mapping[Any, Any], config: DataConfig, new_clients: Collection[str] = ()) -> Pool:
    """Return clients as a pool, in the order of their names, whatever order they come in.

    Args:
        made: client name -> (inputs [N, ...], targets [N, ...]).
        config: the task, and the source's name for messages.
        new_clients: names of those that are new; without any, new ones are chosen at random.

    Raises:
        DataError: naming the client whose examples are not as described above.
    """
    source, kind = config.source, wanted_kind(config)
    # Who takes part is drawn from the clients in order, which must not depend on how the function filled its dict.
    given = (_given(str(name), value, kind) for name, value in made.items())
    clients = sorted(given, key=lambda client: client.name)
    if len({client.name for client in clients}) < len(clients):
        raise DataError("expected client names that differ as text, but two are the same; rename one of them")
    first = clients[0]
    for client in clients:
        if client.form != first.form:
            raise DataError(
                f"expected client {client.name!r} to have the form of client {first.name!r} ({first.form}), but got "
                f"{client.form}; bring them to one form"
            )
    targets = [client.targets for client in clients]
    task = task_of_arrays(first.kind, first.inputs, targets, config, f"the targets of {source}")
    participating = [client for client in clients if client.name not in new_clients]
    new = [client for client in clients if client.name in new_clients]
    notes = class_notes(task, [first_array(part) for part in targets], source) if task.kind in INFERRED else ()
    return Pool(task, _table(participating), new=_table(new) if new else None, by_user_only=True, notes=notes)


def _table(clients: list[_Given]) -> Table:
    groups = [name for client in clients for name in client.groups or ()]
    return Table(
        concatenate([client.inputs for client in clients]),
        concatenate([client.targets for client in clients]),
        np.repeat(np.arange(len(clients)), [rows_of(client.targets) for client in clients]),
        tuple(client.name for client in clients),
        names_of(groups) if groups else None,
    )


def _given(name: str, value: Any, kind: str) -> _Given:
    if not isinstance(value, tuple | list) or len(value) not in (2, 3):
        raise DataError(
            f"expected client {name!r} to be a pair (inputs, targets), or (inputs, targets, groups), but got "
            f"{type(value).__name__}; return a pair"
        )
    inputs = read_inputs(value[0], f"inputs of client {name!r}")
    kind, targets = read_targets(value[1], kind, f"targets of client {name!r}")
    if rows_of(inputs) != rows_of(targets):
        raise DataError(
            f"expected client {name!r} to have as many targets as inputs, but got {rows_of(targets)} and "
            f"{rows_of(inputs)}; give every example one target"
        )
    if rows_of(inputs) < SMALLEST_CLIENT:
        raise DataError(
            f"expected client {name!r} to have at least 2 examples, one to train on and one to be judged on, but it "
            f"has {rows_of(inputs)}; leave this client out"
        )
    groups = as_names(value[2], f"groups of client {name!r}") if len(value) == 3 else None
    if groups is not None and len(groups.codes) != rows_of(inputs):
        raise DataError(
            f"expected client {name!r} to have as many groups as inputs, but got {len(groups.codes)} and "
            f"{rows_of(inputs)}; give every example one group"
        )
    names = None if groups is None else tuple(groups.names[code] for code in groups.codes)
    return _Given(name, kind, inputs, targets, names)


def _checked_federation(federation: Federation, request: SourceRequest) -> DealtFederation:
    config, groups = request.config, [client.group for client in federation.clients]
    if groups != ["participating"] * config.num_clients + ["new"] * config.num_new_clients:
        raise DataError(
            f"expected {config.num_clients} participating clients and then {config.num_new_clients} new ones from "
            f"{config.source}, but got {groups.count('participating')} and {groups.count('new')}, or another order; "
            f"set data.num-clients={groups.count('participating')} and data.num-new-clients={groups.count('new')}, and "
            "return the participating ones first"
        )
    names = [client.client_id for client in federation.clients]
    if len(set(names)) < len(names):
        raise DataError(
            f"expected clients with names of their own from {config.source}, but two are the same; rename one of them"
        )
    for client in federation.clients:
        _check_client(client, federation.task)

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        return federation.clients[partition_id].with_splits(lambda part: _cast(part, federation.task, dtype))

    def identify(partition_id: int) -> tuple[str, Group]:
        return names[partition_id], groups[partition_id]

    return DealtFederation(federation.task, len(names), make_client, federation.notes, identify=identify)


def _check_client(client: ClientData, task: TaskInfo) -> None:
    for split, examples in (("support", client.support), ("validation", client.validation), ("test", client.test)):
        what = f"{split} split of client {client.client_id!r}"
        if not len(examples):
            if split == "validation":
                continue
            raise DataError(f"expected at least 1 example in the {what}, but it is empty; leave this client out")
        if task.kind in INFERRED and task.input_spec is None:
            _check_arrays(examples, task, what)
            continue
        inputs = read_inputs(examples.inputs, f"inputs in the {what}")
        found = spec_of(inputs, keep_integers=task.input_spec is not None) or TensorSpec(first_array(inputs).shape[1:])
        if found != (task.input_spec or TensorSpec(task.input_shape)) or rows_of(inputs) != len(examples):
            raise DataError(
                f"expected the {what} to have inputs {described_inputs(task)} as the federation's task says, but got "
                f"{_forms(inputs, 'inputs')}, {rows_of(inputs)} for {len(examples)} targets; correct the task or the "
                "client"
            )


def _check_arrays(examples: Examples, task: TaskInfo, what: str) -> None:
    kind, targets = as_targets(examples.targets, f"targets in the {what}")
    inputs = as_array(examples.inputs, f"inputs in the {what}")
    check_inputs(inputs, f"inputs in the {what}")
    outputs = int(targets.max()) + 1 if kind == "classification" else targets.shape[1]
    fits = outputs <= task.num_outputs if kind == "classification" else outputs == task.num_outputs
    if kind != task.kind or inputs.shape != (len(targets), *task.input_shape) or not fits:
        raise DataError(
            f"expected the {what} to fit the federation's task ({task.kind}, inputs {[*task.input_shape]}, "
            f"{task.num_outputs} outputs), but it is {kind} with {list(inputs.shape)} inputs, {len(targets)} "
            f"targets and {outputs} outputs; correct the task or the client"
        )


def _cast(examples: Examples, task: TaskInfo, dtype: torch.dtype) -> Examples:
    """Return copies, which a model may change without changing what the function holds."""
    inputs, targets = (
        map_arrays(lambda array: as_array(array, "examples"), tree) for tree in (examples.inputs, examples.targets)
    )
    shape = find_task(task).target_shape
    if task.kind in INFERRED:
        targets = targets.reshape(len(targets), *shape)
    return Table(inputs, targets).examples(np.arange(len(examples)), task, dtype)
