"""The batches of several clients, each drawn as the client would draw it alone, gathered into one padded tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.examples import Examples
from nufed.common.meta.draw import BatchPlan, Sources, batch_plan, draw_indices, sources_of
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.local_update import Stream
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.params import Params
from nufed.common.rng import derive_seed
from nufed.common.steps.cohort_kernel import CohortBatch
from nufed.common.trees import first_leaf, tree_map

MOST_ROW_NUMBERS = 2**20
"""Row numbers of batches that are drawn ahead: 8 MiB."""


@dataclass(frozen=True)
class Trainee:
    """A client that is to train.

    Attributes:
        params: the server's model, w_k; not changed.
        support: examples that all batches are drawn from.
        stream: what the draws are keyed by.
    """

    params: Params
    support: Examples
    stream: Stream


def batch_sizes(trainee: Trainee, method: MethodConfig) -> tuple[int, ...]:
    """Return the sizes of O, I_0 … I_{ν-1}, H_0 …; they differ between clients where a batch is all of the data.

    Raises:
        ConfigError: the estimator is unknown.
        DataError: the support split cannot be divided as `outer-holdout-fraction` asks.
    """
    return _sizes(plan_of(method), trainee_sources(trainee, method))


def plan_of(method: MethodConfig) -> BatchPlan:
    """Return the batches that a meta step of several clients reads."""
    return batch_plan(method, uses_hessian_batches=find_estimator(method.estimator).uses_hessian_batches)


def trainee_sources(trainee: Trainee, method: MethodConfig) -> Sources:
    """Return the rows that a client's inner and outer batches are drawn from.

    Raises:
        DataError: the support split cannot be divided as `outer-holdout-fraction` asks.
    """
    stream = trainee.stream
    return sources_of(trainee.support, method.outer_holdout_fraction, seed=stream.seed, client_id=stream.client_id)


def _sizes(plan: BatchPlan, sources: Sources) -> tuple[int, ...]:
    return (
        plan.outer_size or len(sources.outer),
        *[plan.inner_size or len(sources.inner)] * plan.num_inner,
        *[plan.hessian_size or len(sources.inner)] * plan.num_hessian,
    )


class CohortBatches:
    """Draws and gathers the clients' batches; holds one step's inputs, which the next step's overwrite."""

    def __init__(
        self,
        trainees: Sequence[Trainee],
        plan: BatchPlan,
        sources: Sequence[Sources],
        num_steps: int,
        purpose: str = "",
    ) -> None:
        """Draw batches of so many steps, for another purpose than training the model that is sent if one is named."""
        self._trainees, self._plan, self._sources = trainees, plan, sources
        self._num_steps, self._purpose = num_steps, purpose
        sizes = np.array([_sizes(plan, own) for own in sources])  # [m, number of batches]
        self._sizes = sizes.max(0)  # of each batch, padded
        total, example = int(self._sizes.sum()), trainees[0].support
        rows = (len(trainees), total)
        self._inputs = tree_map(lambda leaf: leaf.new_empty(*rows, *leaf.shape[1:]), example.inputs)
        self._targets = tree_map(lambda leaf: leaf.new_empty(*rows, *leaf.shape[1:]), example.targets)
        self._own_weights = None if example.weights is None else example.weights.new_empty(rows)
        self._shares = [self._share(own) for own in sizes.T]
        self._is_constant = plan.outer_size == plan.inner_size == plan.hessian_size == 0
        self._steps_at_once = max(1, MOST_ROW_NUMBERS // (len(trainees) * total))
        self._indices = torch.empty(0)  # row numbers of some steps, [steps, m, B in all]
        self._gathered = -1

    def draw(self, step: int) -> MetaBatches[CohortBatch]:
        """Return the batches of local step t, valid until the next call; t = 0, 1, … in this order."""
        if not (self._is_constant and self._gathered >= 0):
            self._gather(step)
            self._gathered = step
        ends = np.cumsum(self._sizes)
        batches = [
            self._part(slice(end - size, end), shares)
            for end, size, shares in zip(ends.tolist(), self._sizes.tolist(), self._shares, strict=True)
        ]
        inner = tuple(batches[1 : 1 + self._plan.num_inner])
        return MetaBatches(inner, batches[0], tuple(batches[1 + self._plan.num_inner :]) or inner)

    def _gather(self, step: int) -> None:
        if step % self._steps_at_once == 0:
            last = step + 1 if self._is_constant else min(step + self._steps_at_once, self._num_steps)
            clients = range(len(self._trainees))
            rows = np.stack([[self._rows(number, later) for number in clients] for later in range(step, last)])
            # One copy for many steps, since each of them waits for the device.
            self._indices = torch.from_numpy(rows).to(self._trainees[0].support.device)
        indices = self._indices[step % self._steps_at_once]
        for number, (trainee, index) in enumerate(zip(self._trainees, indices, strict=True)):
            support = trainee.support

            def gather(into: Tensor, leaf: Tensor, number: int = number, index: Tensor = index) -> Tensor:
                return torch.index_select(leaf, 0, index, out=into[number])

            tree_map(gather, self._inputs, support.inputs)
            tree_map(gather, self._targets, support.targets)
            if self._own_weights is not None and support.weights is not None:
                gather(self._own_weights, support.weights)

    def _rows(self, number: int, step: int) -> np.ndarray:
        seed = self._trainees[number].stream.step_seed(step)
        seed = derive_seed(seed, self._purpose) if self._purpose else seed
        drawn = draw_indices(self._plan, self._sources[number], seed)
        return np.concatenate([_pad(own, size) for own, size in zip(drawn, self._sizes.tolist(), strict=True)])

    def _part(self, columns: slice, shares: Tensor) -> CohortBatch:
        inputs, targets = (tree_map(lambda leaf: leaf[:, columns], tree) for tree in (self._inputs, self._targets))
        own = None if self._own_weights is None else self._own_weights[:, columns]
        return CohortBatch(inputs, targets, shares, own)

    def _share(self, sizes: np.ndarray) -> Tensor:
        """Return [m, B] shares 1/B_i, 0 beyond each client's own size."""
        like = first_leaf(self._inputs)
        own = torch.from_numpy(sizes).to(like.device).unsqueeze(1)
        positions = torch.arange(int(sizes.max()), device=like.device).unsqueeze(0)
        dtype = like.dtype if like.is_floating_point() else torch.float32
        return (positions < own).to(dtype) / own.to(dtype)


def _pad(rows: np.ndarray, size: int) -> np.ndarray:
    """Return `rows` followed by its first one until there are `size`; what is added weighs nothing."""
    return rows if len(rows) == size else np.concatenate([rows, np.full(size - len(rows), rows[0])])
