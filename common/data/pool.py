"""Records between a source and the dealing: tables of raw examples, and federations ready to be asked for clients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nufed.common.config import DataConfig
from nufed.common.data.cast import cast, input_name, target_name
from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.settings import Settings

if TYPE_CHECKING:
    from nufed.common.data.private.preparation import Preparation
    from nufed.common.data.target_scaling import TargetScaling

Array = NDArray[Any]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class SourceRequest:
    """What a source is asked for.

    Attributes:
        config: the data section of the run.
        seed: seed of the run; sources that generate their examples derive theirs from it.
        settings: folders of this machine.
        argument: what follows the first colon of `data.source`, e.g. the PATH of `npz:PATH`.
    """

    config: DataConfig
    seed: int
    settings: Settings
    argument: str = ""

    @property
    def num_total(self) -> int:
        """Return the number of clients asked for, new ones included."""
        return self.config.num_clients + self.config.num_new_clients


@dataclass(frozen=True)
class Table:
    """N raw examples, kept in the type they are stored in.

    Attributes:
        inputs: [N, ...]; uint8 with three or more dimensions are pixels, scaled to [0, 1] when a client is made.
        targets: [N] class numbers, or [N, K] values.
        users: [N] index into `user_names` of who made the example; None if nobody is named.
        user_names: names of the users.
    """

    inputs: Array
    targets: Array
    users: Array | None = None
    user_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return N."""
        return len(self.targets)

    def examples(self, rows: Rows, task: TaskInfo, dtype: torch.dtype) -> Examples:
        """Return the tensors of `rows`: inputs [M, *task.input_shape], targets int64 or [M, K] of `dtype`.

        They share no memory with this table.

        Raises:
            DataError: a number is beyond the range of `dtype`.
        """
        inputs = cast(self.inputs[rows], dtype, input_name)
        if self.inputs.dtype == np.uint8 and self.inputs.ndim >= 3:
            inputs.div_(255)
        if task.kind == "classification":
            targets = torch.from_numpy(np.ascontiguousarray(self.targets[rows])).to(torch.int64)
        else:
            targets = cast(self.targets[rows], dtype, target_name)
        return Examples(inputs.reshape(len(rows), *task.input_shape), targets)


@dataclass(frozen=True)
class Pool:
    """Examples that are still to be dealt to clients.

    Attributes:
        task: what the examples are for.
        train: dealt to clients.
        test: the source's own test part; judged on, by the partitions that can deal it.
        new: examples of users who are new clients by the source's own choice.
        by_user_only: the source is a federation by nature, so `data.partition` does not apply.
        notes: what a reader of the run should know.
    """

    task: TaskInfo
    train: Table
    test: Table | None = None
    new: Table | None = None
    by_user_only: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DealtFederation:
    """A federation whose clients are made when they are asked for.

    Attributes:
        task: what the examples are for.
        num_total: clients, new ones included.
        make_client: partition id and type of the inputs -> that client's data.
        notes: what a reader of the run should know.
        target_scaling: of all clients' values to predict; None where each has its own, or they are as they came.
        preparation: of all clients' inputs; None, or returns None, where they are as they came.
    """

    task: TaskInfo
    num_total: int
    make_client: Callable[[int, torch.dtype], ClientData]
    notes: tuple[str, ...] = ()
    target_scaling: "Callable[[], TargetScaling] | None" = None
    preparation: "Callable[[], Preparation | None] | None" = None
