"""From a pool of examples to a federation: which client gets which rows."""

import numpy as np
import torch

from common.config import DataConfig
from common.data.hand import Hand, check_size, client_name, split_hand
from common.data.partition import PARTITIONERS, SMALLEST_CLIENT
from common.data.per_fedavg import deal_per_fedavg
from common.data.pool import DealtFederation, Pool, Rows, Table
from common.errors import DataError
from common.examples import ClientData, Group
from common.rng import numpy_generator


def deal(pool: Pool, config: DataConfig, seed: int) -> DealtFederation:
    """Return the federation that `data.partition` makes of a pool.

    Participating and new clients are dealt by one rule, together, so that their data are disjoint.

    Raises:
        DataError: there are too few examples or users, or a client would be too small.
    """
    notes: tuple[str, ...] = ()
    if pool.by_user_only or config.partition == "by-user":
        hands = _deal_by_user(pool, config, seed)
        what_to_do = f"give it more examples in {config.source}, or leave this user out"
    else:
        hands, notes = _deal_rows(pool, config, seed)
        what_to_do = "lower data.num-clients or data.num-new-clients, or raise data.dirichlet-alpha"
    for hand in hands:
        check_size(hand, what_to_do)

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        return split_hand(hands[partition_id], pool.task, config, seed, dtype)

    return DealtFederation(pool.task, len(hands), make_client, pool.notes + notes)


def _deal_rows(pool: Pool, config: DataConfig, seed: int) -> tuple[list[Hand], tuple[str, ...]]:
    num_total = config.num_clients + config.num_new_clients
    if num_total * SMALLEST_CLIENT > len(pool.train):
        raise DataError(
            f"expected at least {num_total * SMALLEST_CLIENT} examples, {SMALLEST_CLIENT} for each of "
            f"{config.num_clients} participating and {config.num_new_clients} new clients, but {config.source} has "
            f"{len(pool.train)}; lower data.num-clients or data.num-new-clients"
        )
    notes: tuple[str, ...] = ()
    if pool.train.users is not None:
        notes = (f"{config.source} says who made each example; data.partition=by-user makes them the clients",)
    rng = numpy_generator(seed, "data", "partition")
    if config.partition == "per-fedavg":
        hands, more = deal_per_fedavg(pool, config, rng)
        return hands, notes + more
    parts = PARTITIONERS[config.partition](pool.train.targets, num_total, config, rng)
    hands = [Hand(*client_name(index, config), pool.train, rows) for index, rows in enumerate(parts.rows)]
    return hands, notes + parts.notes


def _deal_by_user(pool: Pool, config: DataConfig, seed: int) -> list[Hand]:
    """Return one hand per user, chosen at random, participating first; new ones from `pool.new` if there is one."""
    if pool.new is None:
        num_total = config.num_clients + config.num_new_clients
        chosen = _choose_users(pool.train, num_total, "participating and new", config, seed)
        hands = _user_hands(pool.train, pool.test, chosen[: config.num_clients], "participating")
        hands += _user_hands(pool.train, pool.test, chosen[config.num_clients :], "new")
    else:
        chosen = _choose_users(pool.train, config.num_clients, "participating", config, seed)
        hands = _user_hands(pool.train, pool.test, chosen, "participating")
        chosen = _choose_users(pool.new, config.num_new_clients, "new", config, seed)
        hands += _user_hands(pool.new, None, chosen, "new")
    names = [hand.client_id for hand in hands]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"expected every user to have a name of its own, but {twice!r} names two users of {config.source}; "
            "rename one of them"
        )
    return hands


def _choose_users(table: Table, num_wanted: int, which: str, config: DataConfig, seed: int) -> list[int]:
    if table.users is None:
        raise DataError(
            f"data.partition=by-user needs to know who made each example, but {config.source} does not say; "
            "use data.partition=iid, dirichlet or classes"
        )
    present = np.unique(table.users)
    if num_wanted > len(present):
        raise DataError(
            f"expected {num_wanted} {which} users (data.num-clients={config.num_clients}, "
            f"data.num-new-clients={config.num_new_clients}), but {config.source} has {len(present)}; "
            "lower these numbers"
        )
    return [int(user) for user in numpy_generator(seed, "data", "users", which).permutation(present)[:num_wanted]]


def _user_hands(table: Table, test: Table | None, chosen: list[int], group: Group) -> list[Hand]:
    rows, test_rows = _rows_by_user(table), None if test is None else _rows_by_user(test)
    if test is None or test_rows is None:
        return [Hand(table.user_names[user], group, table, rows[user]) for user in chosen]
    return [Hand(table.user_names[user], group, table, rows[user], test, test_rows[user]) for user in chosen]


def _rows_by_user(table: Table) -> list[Rows]:
    users = np.zeros(0, dtype=np.int64) if table.users is None else table.users
    order = np.argsort(users, kind="stable")
    bounds = np.searchsorted(users[order], np.arange(1, len(table.user_names)))
    return np.split(order, bounds)
