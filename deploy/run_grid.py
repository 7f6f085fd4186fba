"""What our grids have in common: they belong to one run, and make messages as Flower's own do."""

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from nufed.deploy.flower_runtime.words import Run


class RunGrid(Grid):
    """A Grid of one run; holds the run's record."""

    def __init__(self, run: Run) -> None:
        """Belong to a run."""
        self._run = run

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
