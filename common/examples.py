"""Labelled examples, a client's three splits, and the federation they make up."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self

from torch import Tensor

if TYPE_CHECKING:
    from nufed.common.data.target_scaling import TargetScaling

TaskKind = Literal["classification", "regression"]
Group = Literal["participating", "new"]


def in_double(tensor: Tensor) -> Tensor:
    """Return floating-point values in float64, and integers as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class Batch:
    """Examples that one loss value is computed on.

    Attributes:
        inputs: [B, ...].
        targets: [B] class numbers (int64), or [B, K] values.
        mask_seed: seed of the dropout masks, the same for every evaluation on this batch; None without dropout.
    """

    inputs: Tensor
    targets: Tensor
    mask_seed: int | None = None

    def double(self) -> Self:
        """Return the batch in float64; class numbers stay integers."""
        return replace(self, inputs=in_double(self.inputs), targets=in_double(self.targets))


@dataclass(frozen=True)
class Examples:
    """N labelled examples: inputs [N, ...] and targets [N] (class numbers, int64) or [N, K] (values)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.targets)

    def take(self, indices: Tensor) -> "Examples":
        """Return the examples at `indices` [M], in that order."""
        return Examples(self.inputs.index_select(0, indices), self.targets.index_select(0, indices))

    def as_batch(self) -> Batch:
        """Return all examples as one batch."""
        return Batch(self.inputs, self.targets)


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
class TaskInfo:
    """What a model and a loss must fit, the same for every client.

    Attributes:
        kind: `classification` (cross-entropy) or `regression` (half the squared error).
        input_shape: shape of one input, without the batch dimension.
        num_outputs: classes, or values predicted per example.
        class_names: names of the classes in label order; empty for regression.
    """

    kind: TaskKind
    input_shape: tuple[int, ...]
    num_outputs: int
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Federation:
    """All clients of a simulated federation, participating ones first; index = Flower's partition id.

    Attributes:
        task: what the examples are for.
        clients: their examples.
        notes: what a reader of the run should know.
    """

    task: TaskInfo
    clients: tuple[ClientData, ...]
    notes: tuple[str, ...] = field(default=())
