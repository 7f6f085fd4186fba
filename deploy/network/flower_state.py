"""Flower's own state of nodes and runs: in memory, or in a SQLite file."""

import sqlite3
from contextlib import closing
from pathlib import Path

from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from nufed.common.errors import RunError
from nufed.deploy.network.object_store import AtomicObjectStoreFactory


def flower_states(database: Path | None) -> LinkStateFactory:
    """Return Flower's state, in memory or in a SQLite file."""
    if database:
        _check_database(database)
    name = str(database) if database else FLWR_IN_MEMORY_DB_NAME
    objects = ObjectStoreFactory(name) if database else AtomicObjectStoreFactory(name)
    return LinkStateFactory(name, NoOpFederationManager(), objects)


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
