"""Clients given in Python, whatever they are kept in, as the arrays that a run deals with, named by their content."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data.array_trees import Array, is_tree, named_arrays
from nufed.common.data.pool import Pool, Table
from nufed.common.data.user_defined import pool_of_clients
from nufed.common.errors import ConfigError, DataError
from nufed.common.examples import Federation
from nufed.common.given import GIVEN
from nufed.common.trees import leaves
from nufed.common.user_code import guarded
from nufed.library.arguments import as_collection, listed
from nufed.library.tables import (
    Columns,
    clients_of_partitions,
    clients_of_table,
    groups_by_client,
    is_table,
    pair_of_table,
)


@dataclass(frozen=True)
class GivenData:
    """Clients given in Python, checked.

    Attributes:
        content: their examples, to be dealt, or a federation with its own splits.
        num_clients: participating clients, if nothing else is asked for.
        num_new_clients: new clients, likewise.
    """

    content: Pool | Federation
    num_clients: int
    num_new_clients: int

    @property
    def source(self) -> str:
        """Return what `data.source` is: equal for equal content, and no other."""
        return f"{GIVEN}:{_fingerprint(self.content)}"


def read_dataset(dataset: Any, columns: Columns, new_clients: Iterable[Any] | None, config: DataConfig) -> GivenData:
    """Return the clients of any kind of dataset that `nufed.simulate` takes, other than a name.

    Args:
        dataset: as it was given.
        columns: which of a table's columns are what.
        new_clients: names of clients that never take part in training; None for none.
        config: what the targets are for.

    Raises:
        ConfigError: columns are named for a dataset without columns, or new clients that are not in it.
        DataError: naming the client whose examples are not as expected.
    """
    if isinstance(dataset, Federation):
        return _federation(dataset, columns, new_clients)
    clients, class_names = _clients(dataset, columns)
    clients = _grouped(clients, groups_by_client(dataset, columns))
    new = [str(name) for name in as_collection(() if new_clients is None else new_clients, "new_clients")]
    if unknown := [name for name in new if name not in clients]:
        raise ConfigError(
            f"new_clients names {listed(unknown)}, which the dataset does not have. Its "
            f"clients are called {', '.join(map(repr, list(clients)[:5]))}{', …' if len(clients) > 5 else ''}."
        )
    if not clients or len(set(new)) == len(clients):
        raise DataError(
            f"expected clients to train on, but the dataset has {len(clients)}, of which {len(new)} are new; give a "
            "dict from client name to (inputs, targets)"
        )
    named = config.model_copy(update={"source": "the dataset"})
    pool = pool_of_clients(clients, named, frozenset(new))
    if class_names:
        pool = replace(pool, task=replace(pool.task, num_outputs=len(class_names), class_names=class_names))
    return GivenData(pool, len(clients) - len(set(new)), len(set(new)))


def _grouped(clients: Mapping[str, tuple[Any, ...]], groups: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the clients with the groups of their examples, for all of them or for none."""
    if not groups:
        return dict(clients)
    if differing := sorted(set(clients) ^ set(groups)):
        raise ConfigError(
            f"group says of {len(groups)} clients which examples belong together, but the dataset has {len(clients)}: "
            f"{listed(differing)} is in one of them alone. Give the groups of every client."
        )
    return {name: (*client[:2], groups[name]) for name, client in clients.items()}


def _federation(federation: Federation, columns: Columns, new_clients: Iterable[Any] | None) -> GivenData:
    if columns.named or columns.group or new_clients:
        raise ConfigError(
            "columns and new_clients are not for a Federation, whose clients say themselves which of them are new. "
            "Leave them out."
        )
    groups = [client.group for client in federation.clients]
    return GivenData(federation, groups.count("participating"), groups.count("new"))


def _clients(dataset: Any, columns: Columns) -> tuple[Mapping[str, tuple[Any, ...]], tuple[str, ...]]:
    """Return name -> (inputs, targets), and the names of the classes where the dataset has them."""
    if isinstance(getattr(dataset, "column_names", None), Mapping):
        raise DataError(
            f"expected one dataset with a column that names the client, but got the splits {', '.join(dataset)}; "
            "choose one, e.g. dataset['train']"
        )
    if is_table(dataset):
        return clients_of_table(dataset, columns)
    if hasattr(dataset, "load_partition") and hasattr(dataset, "num_partitions"):
        return clients_of_partitions(dataset, columns)
    if not isinstance(dataset, Mapping):
        raise DataError(
            "expected a dict from client name to (inputs, targets) or to a torch Dataset, a Hugging Face dataset or a "
            "pandas frame with client_column=..., a partitioner of flwr-datasets, or a name such as 'digits', but got "
            f"{type(dataset).__name__}; give one of these"
        )
    if columns.client:
        raise ConfigError("client_column is for a table of all clients, but the dataset is a dict by client already.")
    tables = {str(name): value for name, value in dataset.items() if is_table(value)}
    if tables and len(tables) == len(dataset):
        return pair_of_table(tables, columns)
    if columns.inputs is not None or columns.target is not None:
        raise ConfigError("input_columns and target_column are for tables, but the dataset has none. Leave them out.")
    clients = {str(name): _pair(str(name), value) for name, value in dataset.items()}
    if len(clients) < len(dataset):
        raise DataError("expected client names that differ as text, but two are the same; rename one of them")
    return clients, ()


def _pair(name: str, value: Any) -> tuple[Any, ...]:
    """Return one client's (inputs, targets), and groups if it has any, of a tuple or a map-style torch Dataset."""
    if isinstance(value, tuple | list) and len(value) in (2, 3):
        return tuple(value)
    if hasattr(value, "__array__"):
        raise DataError(
            f"expected client {name!r} to be a pair (inputs, targets), but got one array ({type(value).__name__}); "
            "give its targets too"
        )
    tensors = getattr(value, "tensors", None)  # torch.utils.data.TensorDataset
    if isinstance(tensors, tuple) and len(tensors) == 2:
        return tensors
    if isinstance(value, tuple | list | Mapping) or not (hasattr(value, "__getitem__") and hasattr(value, "__len__")):
        raise DataError(
            f"expected client {name!r} to be a pair (inputs, targets) or a torch Dataset with a length, but got "
            f"{type(value).__name__}; give one of these"
        )
    items = guarded(lambda: [value[index] for index in range(len(value))], f"client {name!r}", DataError, Path.cwd())()
    if wrong := next((item for item in items if not isinstance(item, tuple | list) or len(item) != 2), None):
        raise DataError(
            f"expected each item of client {name!r} to be (input, target), but got {type(wrong).__name__}; let "
            "__getitem__ return a pair"
        )
    return tuple(_stacked([item[part] for item in items], name) for part in (0, 1))


def _stacked(values: list[Any], name: str) -> Any:
    first: Any = values[0] if values else None
    if isinstance(first, Mapping):
        return {key: _stacked([_part(value, key, name) for value in values], name) for key in first}
    if is_tree(first):
        return tuple(_stacked([_part(value, key, name) for value in values], name) for key in range(len(first)))
    try:
        return np.stack([np.asarray(value) for value in values]) if values else np.zeros(0)
    except ValueError as error:
        raise DataError(
            f"expected the examples of client {name!r} to have one shape, but {error}; resize or pad them"
        ) from error


def _part(value: Any, key: Any, name: str) -> Any:
    try:
        return value[key]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"expected every example of client {name!r} to have {key!r}, but one has not; add it"
        ) from error


def _fingerprint(content: Pool | Federation) -> str:
    """Return 16 hexadecimal digits that follow from names, order, types, shapes and values."""
    digest = hashlib.sha256()
    task = content.task
    digest.update(json.dumps([task.kind, task.input_shape, task.num_outputs, task.class_names]).encode())
    if further := [str(part) for part in (task.input_spec, task.target_shape, task.options) if part]:
        digest.update(json.dumps(further).encode())
    if isinstance(content, Federation):
        for client in content.clients:
            digest.update(json.dumps([client.client_id, client.group]).encode())
            for split in (client.support, client.validation, client.test):
                for tensor in (*leaves(split.inputs), *leaves(split.targets)):
                    _update(digest, tensor.detach().cpu().numpy())
        return digest.hexdigest()[:16]
    for table in (content.train, content.new):
        if table is not None:
            digest.update(json.dumps(table.user_names).encode())
            for tree in (table.inputs, table.targets, _users(table)):
                for _, array in named_arrays(tree):
                    _update(digest, array)
            digest.update(b"" if table.groups is None else table.groups.keys().tobytes())
    return digest.hexdigest()[:16]


def _users(table: Table) -> Array:
    return np.zeros(0, dtype=np.int64) if table.users is None else table.users


def _update(digest: Any, array: Array) -> None:
    digest.update(f"{array.dtype.str} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
