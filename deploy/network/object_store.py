"""Flower's object store in memory, without its race between announcing a message's objects and deleting another's."""

from nufed.deploy.flower_runtime.state import InMemoryObjectStore, ObjectStore, ObjectStoreFactory
from nufed.deploy.flower_runtime.wire import ObjectTree


class AtomicObjectStore(InMemoryObjectStore):
    """Announces a whole tree at once.

    Flower's store takes its lock object by object. Messages with the same model share objects; if one node confirms its
    message while another's is announced, the second loses what it believed to be there.
    """

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """Announce a tree's objects and return the ids of those that are missing."""
        with self.lock_store:
            return super().preregister(run_id, object_tree)


class AtomicObjectStoreFactory(ObjectStoreFactory):
    """Gives out one `AtomicObjectStore`."""

    def __init__(self, database: str) -> None:
        super().__init__(database)
        self._store = AtomicObjectStore()

    def store(self) -> ObjectStore:
        """Return the store."""
        return self._store
