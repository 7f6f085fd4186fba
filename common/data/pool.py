"""Records between a source and the dealing: tables of raw examples, and federations ready to be asked for clients."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nufed.common.config import DataConfig
from nufed.common.data.array_trees import Array, ArrayTree, as_tensors, map_arrays, rows_of, take_rows
from nufed.common.data.cast import cast, target_name
from nufed.common.data.division import Division, Names
from nufed.common.examples import ClientData, Examples, Group, TaskInfo, TensorSpec
from nufed.common.settings import Settings
from nufed.common.tasks import find_task
from nufed.common.trees import Tree

if TYPE_CHECKING:
    from nufed.common.data.private.preparation import Preparation
    from nufed.common.data.target_scaling import TargetScaling

__all__ = ["Array", "DealtFederation", "Pool", "Rows", "SourceRequest", "Table"]

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
        inputs: [N, ...], one array or several; uint8 with three or more dimensions are pixels, scaled to [0, 1] when a
            client is made.
        targets: [N, ...], as the task has them.
        users: [N] index into `user_names` of who made the example; None if nobody is named.
        user_names: names of the users.
        groups: of each example, which all go to one split of a client; None where examples do not belong together.
        division: what the splits of each client follow from; None draws them at random.
    """

    inputs: ArrayTree
    targets: ArrayTree
    users: Array | None = None
    user_names: tuple[str, ...] = ()
    groups: Names | None = None
    division: Division | None = None

    def __len__(self) -> int:
        """Return N."""
        return rows_of(self.targets)

    def examples(self, rows: Rows, task: TaskInfo, dtype: torch.dtype) -> Examples:
        """Return the tensors of `rows`: inputs [M, ...], targets int64 or of `dtype`, as the task has them.

        They share no memory with this table.

        Raises:
            DataError: a number is beyond the range of `dtype`.
        """
        spec = task.input_spec or TensorSpec(task.input_shape)
        groups = None if self.groups is None else torch.from_numpy(self.groups.codes[rows])
        inputs = as_tensors(take_rows(self.inputs, rows), spec, dtype)
        return Examples(inputs, self._targets(rows, task, dtype), groups=groups)

    def _targets(self, rows: Rows, task: TaskInfo, dtype: torch.dtype) -> Tree:
        needs_float = find_task(task).needs_float_targets

        def tensor(array: Array) -> Tensor:
            is_float = array.dtype.kind == "f" if needs_float is None else needs_float
            if is_float:
                return cast(array[rows], dtype, target_name)
            return torch.from_numpy(np.ascontiguousarray(array[rows])).to(torch.int64)

        targets: Tree = map_arrays(tensor, self.targets)
        return targets


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
        is_prepared: whether each client comes scaled, and cut down to few examples, as it is when it is deployed.
        target_scaling: of all clients' values to predict; None where each has its own, or they are as they came.
        preparation: of all clients' inputs; None, or returns None, where they are as they came.
        identify: partition id -> that client's name and group, without its data; None where only its data tell.
        num_pooled: participating clients that shared scales are found on; 0 is all.
        largest_input: returns a magnitude that no input exceeds; infinity where only the clients' data tell.
    """

    task: TaskInfo
    num_total: int
    make_client: Callable[[int, torch.dtype], ClientData]
    notes: tuple[str, ...] = ()
    is_prepared: bool = False
    target_scaling: "Callable[[], TargetScaling] | None" = None
    preparation: "Callable[[], Preparation | None] | None" = None
    identify: "Callable[[int], tuple[str, Group]] | None" = None
    num_pooled: int = 0
    largest_input: Callable[[], float] = lambda: math.inf

    def pooled(self, config: DataConfig) -> range:
        """Return the partition ids of the clients whose support splits shared scales are found on."""
        return range(min(config.num_clients, self.num_pooled or config.num_clients))
