"""Labelled examples, a client's three splits, the task they are for, and the federation they make up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import torch
from torch import Tensor

from nufed.common import trees
from nufed.common.trees import Tree

if TYPE_CHECKING:
    from nufed.common.data.target_scaling import TargetScaling

Group = Literal["participating", "new"]
Option = bool | int | float | str
TaskKind = str
"""A name in `nufed.common.tasks.TASKS`, or `python:module:function`."""


@dataclass(frozen=True)
class Batch:
    """Examples that one loss value is computed on.

    Attributes:
        inputs: a tree whose leaves are [B, ...].
        targets: what the task compares outputs with, [B, ...]: class numbers (int64), values, …
        mask_seed: seed of the dropout masks, the same for every evaluation on this batch; None without dropout.
        weights: [B], what each example counts, 1 on average over the client's data; None where all count the same.
    """

    inputs: Tree
    targets: Tree
    mask_seed: int | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        """Return B."""
        return trees.num_rows(self.targets)

    def double(self) -> Self:
        """Return the batch in float64; integers and booleans stay what they are."""
        weights = None if self.weights is None else self.weights.double()
        inputs, targets = trees.in_double(self.inputs), trees.in_double(self.targets)
        return replace(self, inputs=inputs, targets=targets, weights=weights)

    def rows(self, rows: Tensor) -> Self:
        """Return the examples at `rows` [M], with the same seed."""
        inputs, targets = trees.take(self.inputs, rows), trees.take(self.targets, rows)
        weights = None if self.weights is None else self.weights.index_select(0, rows)
        return replace(self, inputs=inputs, targets=targets, weights=weights)


@dataclass(frozen=True)
class Examples:
    """N labelled examples.

    Attributes:
        inputs: a tree whose leaves are [N, ...].
        targets: [N, ...], as the task has them; class numbers are int64.
        weights: [N], what each example counts in training, 1 on average; None where all count the same.
        groups: [N] int64, equal where examples belong together and are not divided; None where none do.
    """

    inputs: Tree
    targets: Tree
    weights: Tensor | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        """Return N."""
        return trees.num_rows(self.targets)

    @property
    def device(self) -> torch.device:
        """Return where the examples are."""
        return trees.first_leaf(self.targets).device

    def take(self, indices: Tensor) -> "Examples":
        """Return the examples at `indices` [M], in that order."""
        weights = None if self.weights is None else self.weights.index_select(0, indices)
        groups = None if self.groups is None else self.groups.index_select(0, indices)
        return Examples(trees.take(self.inputs, indices), trees.take(self.targets, indices), weights, groups)

    def as_batch(self) -> Batch:
        """Return all examples as one batch."""
        return Batch(self.inputs, self.targets, weights=self.weights)

    def to(self, device: str | torch.device) -> "Examples":
        """Return the examples on a device."""
        weights = None if self.weights is None else self.weights.to(device)
        groups = None if self.groups is None else self.groups.to(device)
        return Examples(trees.to_device(self.inputs, device), trees.to_device(self.targets, device), weights, groups)


@dataclass(frozen=True)
class ClientData:
    """One client's examples; no example is in two splits.

    Attributes:
        client_id: stable name, the same in every runtime.
        group: whether it may be chosen for training (`participating`) or never is (`new`).
        support: training, and adaptation at test time.
        validation: choice of hyper-parameters; may be empty.
        test: judged on, never trained, adapted or chosen on.
        target_scaling: how the values to predict in all three were scaled; None where they are as they came.
    """

    client_id: str
    group: Group
    support: Examples
    validation: Examples
    test: Examples
    target_scaling: "TargetScaling | None" = None

    def with_splits(self, change: Callable[[Examples], Examples]) -> "ClientData":
        """Return the client with each of its three splits changed."""
        parts = change(self.support), change(self.validation), change(self.test)
        return replace(self, support=parts[0], validation=parts[1], test=parts[2])


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of an input: its shape without the batch dimension, and what it holds."""

    shape: tuple[int, ...]
    dtype: Literal["float", "integer", "boolean"] = "float"


InputSpec: TypeAlias = TensorSpec | tuple[Any, ...]
"""A tensor's form, a tuple of forms, or the forms of a dict as pairs (name, form) in the order of the names."""


@dataclass(frozen=True)
class TaskInfo:
    """What a model and a loss must fit, the same for every client.

    Attributes:
        kind: a name in `nufed.common.tasks.TASKS`, or `python:module:function`.
        input_shape: shape of one input, without the batch dimension; empty for several inputs.
        num_outputs: classes, labels, or values predicted per example (or per pixel or position).
        class_names: names of the classes in label order; empty where there are none.
        input_spec: what one input is made of; None for a floating-point tensor of `input_shape`.
        target_shape: shape of one target: () for a class, (K,) for values or labels, (H, W) or (L,) for classes of
            pixels or positions.
        options: the loss's options, by name, where they are not the defaults.
    """

    kind: str
    input_shape: tuple[int, ...]
    num_outputs: int
    class_names: tuple[str, ...] = ()
    input_spec: InputSpec | None = None
    target_shape: tuple[int, ...] = ()
    options: tuple[tuple[str, Option], ...] = ()


@dataclass(frozen=True)
class Federation:
    """All clients of a simulated federation, participating ones first; index = Flower's partition id.

    Attributes:
        task: what the examples are for.
        clients: their examples; of a large federation, each is made when it is asked for.
        notes: what a reader of the run should know.
    """

    task: TaskInfo
    clients: Sequence[ClientData]
    notes: tuple[str, ...] = field(default=())
