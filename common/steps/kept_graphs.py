"""How many gradient graphs a meta step keeps: memory against a second pass over the batch."""

import sys
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from nufed.common.params import Params
from nufed.common.steps.steps import AnyBatch, PullBack, SizedPullBack, Steps
from nufed.common.trees import leaves

Memory = Literal["low", "fast", "auto"]
GRAPH_BUDGET = 256 * 2**20  # bytes


class KeptGraphs:
    """Takes inner steps and keeps the graphs of the last ones; holds the size of a graph once it is measured."""

    def __init__(self, memory: Memory) -> None:
        limits: dict[Memory, int | None] = {"low": 1, "fast": sys.maxsize, "auto": None}
        self._limit = limits[memory]

    def step(
        self, steps: Steps[AnyBatch], params: Mapping[str, Tensor], batch: AnyBatch, num_ahead: int
    ) -> tuple[Params, PullBack | None]:
        """Return the next point, and the step's pull-back if its graph and those of the steps ahead are kept.

        Args:
            steps: the inner step.
            params: where it starts.
            batch: what it is taken on.
            num_ahead: inner steps that follow this one.
        """
        if self._limit is None:
            moved, pull_back, size = _measured(steps, params, batch)
            self._limit = max(1, GRAPH_BUDGET // max(1, size))
        else:
            moved, pull_back = steps.linearize(params, batch)
        # Also where the graph is dropped: a gradient without graph may round otherwise (GroupNorm has two backwards).
        return moved, pull_back if num_ahead < self._limit else None


def _measured(steps: Steps[AnyBatch], params: Mapping[str, Tensor], batch: AnyBatch) -> tuple[Params, PullBack, int]:
    """Return a linearized step and the bytes that it keeps alive beside parameters and batch."""
    parts = (part for part in vars(batch).values() if isinstance(part, Tensor | tuple | Mapping))
    given = (*params.values(), *(leaf for part in parts for leaf in leaves(part)))
    shared = {tensor.untyped_storage().data_ptr() for tensor in given}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        moved, pull_back = steps.linearize(params, batch)
    if isinstance(pull_back, SizedPullBack):
        return moved, pull_back, pull_back.num_bytes()
    return moved, pull_back, sum(size for pointer, size in sizes.items() if pointer not in shared)
