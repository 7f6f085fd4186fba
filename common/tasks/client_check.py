"""Whether a client's targets are such that its task can compare with them."""

from nufed.common.errors import DataError, NufedError
from nufed.common.examples import ClientData, TaskInfo
from nufed.common.tasks.registry import find_task
from nufed.common.trees import Tree


def check_client_targets(client: ClientData, info: TaskInfo) -> None:
    """Refuse a client with a target that its task does not have.

    Raises:
        DataError: naming the client and its split, with counts and no value.
    """
    for name, examples in (("support", client.support), ("validation", client.validation), ("test", client.test)):
        if len(examples):
            check_targets(examples.targets, info, f"client {client.client_id!r}, targets of the {name} split")


def check_targets(targets: Tree, info: TaskInfo, where: str) -> None:
    """Refuse targets [N, ...] that a task does not have.

    Raises:
        DataError: naming them as `where` does, with counts and no value.
    """
    try:
        find_task(info).check_targets(targets)
    except NufedError as error:
        told = DataError(f"{where}: {error}")
        told.sendable = error.sendable
        raise told from error
    except Exception as error:  # a check of the user's own may raise anything
        raise DataError(f"{where}: {info.kind} refuses them ({type(error).__name__}: {error}); correct them") from error
