"""Flower's state of nodes, runs and messages, and its Fleet service."""

from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.server.superlink.utils import check_abort
from flwr.supercore.object_store import ObjectStore, ObjectStoreFactory
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.federation import FederationManager, NoOpFederationManager

__all__ = [
    "FederationManager",
    "FleetServicer",
    "InMemoryLinkState",
    "InMemoryObjectStore",
    "LinkState",
    "LinkStateFactory",
    "NoOpFederationManager",
    "ObjectStore",
    "ObjectStoreFactory",
    "check_abort",
]
