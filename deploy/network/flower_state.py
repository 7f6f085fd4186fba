"""Flower's own state of nodes and runs: in memory, or in a SQLite file; and who is online in either."""

import sqlite3
from contextlib import closing
from pathlib import Path

from nufed.common.errors import RunError
from nufed.deploy.flower_runtime.state import LinkState, LinkStateFactory, NoOpFederationManager, ObjectStoreFactory
from nufed.deploy.flower_runtime.words import FLWR_IN_MEMORY_DB_NAME, NodeStatus
from nufed.deploy.network.indexed_state import IndexedLinkState
from nufed.deploy.network.object_store import AtomicObjectStoreFactory


def flower_states(database: Path | None) -> LinkStateFactory:
    """Return Flower's state, in memory or in a SQLite file."""
    if database:
        _check_database(database)
    name = str(database) if database else FLWR_IN_MEMORY_DB_NAME
    objects = ObjectStoreFactory(name) if database else AtomicObjectStoreFactory(name)
    states = LinkStateFactory(name, NoOpFederationManager(), objects)
    if not database:
        states.state_instance = IndexedLinkState(states.federation_manager, objects.store())
    return states


def online_nodes(state: LinkState) -> set[int]:
    """Return the nodes that are online."""
    if isinstance(state, IndexedLinkState):
        return state.online_nodes()
    return {node.node_id for node in state.get_node_info(statuses=[NodeStatus.ONLINE])}


def num_online(state: LinkState) -> int:
    """Return how many nodes are online."""
    return state.num_online() if isinstance(state, IndexedLinkState) else len(online_nodes(state))


def is_online(state: LinkState, node_id: int) -> bool:
    """Return whether a node is online."""
    if isinstance(state, IndexedLinkState):
        return state.is_online(node_id)
    return bool(state.get_node_info(node_ids=[node_id], statuses=[NodeStatus.ONLINE]))


def changed_nodes(state: LinkState, before: set[int]) -> dict[int, bool]:
    """Return which nodes have come (True) or gone (False); `before` are those that were online, and is not changed."""
    if isinstance(state, IndexedLinkState):
        return {node: is_here for node, is_here in state.take_changes().items() if is_here != (node in before)}
    online = online_nodes(state)
    return {node: node in online for node in online ^ before}


def shorten_life(state: LinkState, node_id: int, seconds: float) -> None:
    """Have a node count as gone after so many seconds, where it was to count for longer; in memory only."""
    if isinstance(state, IndexedLinkState):
        state.shorten_life(node_id, seconds)


def _check_database(path: Path) -> None:
    """Refuse a file that is no SQLite database or cannot be written; Flower would tell it in 160 lines.

    Raises:
        RunError: with what SQLite says.
    """
    try:
        with closing(sqlite3.connect(path, timeout=1.0)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise RunError(
            f"Expected --state to name a SQLite file that can be written to, but of {path} SQLite says: {error}. Name "
            "another file, in a folder that exists."
        ) from error
    if tables and "alembic_version" not in tables:
        raise RunError(
            f"Expected --state to name a file of Flower's, but {path} is another program's database (it has the table "
            f"{sorted(tables)[0]!r}). Name another file."
        )
