"""From a pool of examples to a federation: which client gets which rows."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from nufed.common.config import DataConfig
from nufed.common.data.array_trees import is_tree
from nufed.common.data.dealt_client import SMALLEST_CLIENT, DealtClient, client_name, split_client, too_small
from nufed.common.data.division import Division, content_keys
from nufed.common.data.partition import PARTITIONERS
from nufed.common.data.per_fedavg import deal_per_fedavg
from nufed.common.data.pool import DealtFederation, Pool, Rows, Table
from nufed.common.errors import DataError
from nufed.common.examples import ClientData, Group
from nufed.common.rng import numpy_generator

NOTABLE_SHIFT = 0.2
"""Total variation distance between the labels of two groups of clients, beyond chance, that a run tells of."""


def deal(pool: Pool, config: DataConfig, seed: int) -> DealtFederation:
    """Return the federation that `data.partition` makes of a pool.

    Participating and new clients are dealt by one rule, together, so that their data are disjoint.

    Raises:
        DataError: there are too few examples or users, a client would be too small, or a group would be dealt to
            several.
    """
    _check_apart(pool, config)
    pool = replace(pool, train=divided(pool.train), new=None if pool.new is None else divided(pool.new))
    if pool.by_user_only or config.partition == "by-user":
        dealt_clients, notes = _deal_by_user(pool, config, seed)
    else:
        dealt_clients, notes = _deal_rows(pool, config, seed)
    for dealt in dealt_clients:
        if problem := too_small(dealt):
            raise DataError(
                f"expected client {dealt.client_id!r} to have enough examples to train on and to be judged on, but it "
                f"{problem}; lower data.num-clients or data.num-new-clients, or choose another data.partition"
            )

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        return split_client(dealt_clients[partition_id], pool.task, config, seed, dtype)

    def identify(partition_id: int) -> tuple[str, Group]:
        return dealt_clients[partition_id].client_id, dealt_clients[partition_id].group

    def largest_input() -> float:
        inputs = pool.train.inputs
        return math.inf if is_tree(inputs) else float(np.abs(inputs.astype(np.float64)).max(initial=0.0))

    notes = pool.notes + notes
    return DealtFederation(
        pool.task, len(dealt_clients), make_client, notes, identify=identify, largest_input=largest_input
    )


def _check_apart(pool: Pool, config: DataConfig) -> None:
    """Refuse groups that are trained on and tested."""
    if pool.test is None or pool.test.groups is None or pool.train.groups is None:
        return
    if common := set(pool.train.groups.names).intersection(pool.test.groups.names):
        raise DataError(
            f"expected the examples of a group in one part, but {len(common)} groups have examples in the training and "
            f"in the test part of {config.source}; put each group into one of them, or leave the groups out"
        )


def divided(table: Table) -> Table:
    """Return a table that is split by groups, if it has any."""
    if table.groups is None or table.division is not None:
        return table
    return replace(table, division=Division(content_keys(table.inputs, table.targets), table.groups.keys()))


def _deal_rows(pool: Pool, config: DataConfig, seed: int) -> tuple[list[DealtClient], tuple[str, ...]]:
    num_total = config.num_clients + config.num_new_clients
    if num_total * SMALLEST_CLIENT > len(pool.train):
        raise DataError(
            f"expected at least {num_total * SMALLEST_CLIENT} examples, {SMALLEST_CLIENT} for each of "
            f"{config.num_clients} participating and {config.num_new_clients} new clients, but {config.source} has "
            f"{len(pool.train)}; lower data.num-clients or data.num-new-clients"
        )
    if pool.train.groups is not None:
        raise DataError(
            f"expected users to be the clients where examples have groups, but data.partition={config.partition} deals "
            "one example at a time, so that a group would be trained on by one client and tested by another; set "
            "data.partition=by-user, or leave the groups out"
        )
    notes: tuple[str, ...] = ()
    if pool.train.users is not None:
        notes = (f"{config.source} says who made each example; data.partition=by-user makes them the clients",)
    notes += _unused_parts(pool, config)
    rng = numpy_generator(seed, "data", "partition")
    if config.partition == "per-fedavg":
        dealt_clients, more = deal_per_fedavg(pool, config, rng)
        return dealt_clients, notes + more
    parts = PARTITIONERS[config.partition](pool.train.targets, num_total, config, rng)
    dealt_clients = [
        DealtClient(*client_name(index, config), pool.train, rows) for index, rows in enumerate(parts.rows)
    ]
    return dealt_clients, notes + parts.notes


def _unused_parts(pool: Pool, config: DataConfig) -> tuple[str, ...]:
    """Return a note on the parts of a user's own file that the partition leaves out; named sources document theirs."""
    parts = {"test": pool.test if config.partition != "per-fedavg" else None, "new": pool.new}
    sizes = {name: len(part) for name, part in parts.items() if part is not None}
    if not sizes or not config.source.startswith("npz:"):
        return ()
    told = " and ".join(f"{size} examples of x_{name}" for name, size in sizes.items())
    return (f"{told} in {config.source} take no part: data.partition={config.partition} deals the others",)


def _deal_by_user(pool: Pool, config: DataConfig, seed: int) -> tuple[list[DealtClient], tuple[str, ...]]:
    """Return one client per user, chosen at random, participating first; new ones from `pool.new` if there is one."""
    if pool.new is None or config.new_users == "drawn":
        num_total = config.num_clients + config.num_new_clients
        users = _choose(_user_clients(pool.train, pool.test, config), num_total, "participating and new", config, seed)
        own, new = users.dealt_clients[: config.num_clients], users.dealt_clients[config.num_clients :]
        notes = users.notes
    else:
        users = _choose(_user_clients(pool.train, pool.test, config), config.num_clients, "participating", config, seed)
        new_users = _choose(_user_clients(pool.new, None, config), config.num_new_clients, "new", config, seed)
        own, new = users.dealt_clients, new_users.dealt_clients
        notes = users.notes + new_users.notes + _label_shift(own, new, pool, config)
    dealt_clients = [*own, *(replace(dealt, group="new") for dealt in new)]
    names = [dealt.client_id for dealt in dealt_clients]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"expected every user to have a name of its own, but {twice!r} names two users of {config.source}; "
            "rename one of them"
        )
    return dealt_clients, notes


def _label_shift(own: list[DealtClient], new: list[DealtClient], pool: Pool, config: DataConfig) -> tuple[str, ...]:
    """Return a note where new clients, which the source sets apart, have other labels than participating ones."""
    if pool.task.kind != "classification" or not new:
        return ()
    counts = [
        np.bincount(
            np.concatenate([np.asarray(client.table.targets)[client.rows] for client in group]),
            minlength=pool.task.num_outputs,
        )
        for group in (own, new)
    ]
    sizes = [int(count.sum()) for count in counts]
    distance = 0.5 * float(np.abs(counts[0] / sizes[0] - counts[1] / sizes[1]).sum())
    all_shares = (counts[0] + counts[1]) / sum(sizes)
    deviations = np.sqrt(all_shares * (1 - all_shares) * sum(1 / size for size in sizes))
    by_chance = math.sqrt(0.5 / math.pi) * float(deviations.sum())  # E|N(0, σ²)| = σ √(2/π)
    if distance - by_chance < NOTABLE_SHIFT:
        return ()
    told = (
        f"the new users of {config.source} have other labels than the participating ones (total variation distance "
        f"{distance:.2f}): how much worse they do is also about that; data.new-users=drawn draws new clients from the "
        "same users"
    )
    return (told,)


def _user_clients(table: Table, test: Table | None, config: DataConfig) -> list[DealtClient]:
    """Return a client for every user that has examples, as a participating client."""
    if table.users is None:
        raise DataError(
            f"data.partition=by-user needs to know who made each example, but {config.source} does not say; "
            "use data.partition=iid, dirichlet or classes"
        )
    rows, test_rows = _rows_by_user(table), None if test is None else _rows_by_user(test)
    dealt_clients = []
    for user in np.unique(table.users):
        dealt = DealtClient(table.user_names[user], "participating", table, rows[user])
        dealt_clients.append(dealt if test_rows is None else replace(dealt, test_table=test, test_rows=test_rows[user]))
    return dealt_clients


def _rows_by_user(table: Table) -> list[Rows]:
    users = np.zeros(0, dtype=np.int64) if table.users is None else table.users
    order = np.argsort(users, kind="stable")
    return np.split(order, np.searchsorted(users[order], np.arange(1, len(table.user_names))))


@dataclass(frozen=True)
class _Chosen:
    dealt_clients: list[DealtClient]
    notes: tuple[str, ...]


def _choose(dealt_clients: list[DealtClient], num_wanted: int, which: str, config: DataConfig, seed: int) -> _Chosen:
    """Return `num_wanted` of the users that are large enough, in random order."""
    usable = [dealt for dealt in dealt_clients if not too_small(dealt)]
    small = [dealt for dealt in dealt_clients if too_small(dealt)]
    left_out = (
        f"{len(small)} are too small, such as {small[0].client_id!r}, which {too_small(small[0])}" if small else ""
    )
    if num_wanted > len(usable):
        raise DataError(
            f"expected {num_wanted} {which} users (data.num-clients={config.num_clients}, "
            f"data.num-new-clients={config.num_new_clients}), but {config.source} has {len(dealt_clients)}"
            f"{f', of which {left_out}' if small else ''}; lower these numbers"
        )
    order = numpy_generator(seed, "data", "users", which).permutation(len(usable))[:num_wanted]
    notes: tuple[str, ...] = ()
    if small:
        notes = (f"of {len(dealt_clients)} users of {config.source}, {left_out}; they are left out",)
    if spare := len(usable) - num_wanted:
        told = (
            f"{num_wanted} of {len(usable)} users of {config.source} are the {which} clients of this run, drawn by its "
            f"seed; {spare} take no part (data.num-clients={config.num_clients}, "
            f"data.num-new-clients={config.num_new_clients})"
        )
        notes = (*notes, told)
    return _Chosen([usable[index] for index in order], notes)
