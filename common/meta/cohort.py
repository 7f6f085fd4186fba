"""The τ meta steps of several clients as one batched computation (docs/theory.md, section 1), for all of S_k at once.

Each client draws the batches that it would draw alone, from its own stream; only the arithmetic is shared. So the
result is that of `local_update` client by client, up to rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError
from nufed.common.examples import Examples
from nufed.common.meta.draw import BatchPlan, Sources, batch_plan, draw_indices, draws_with_replacement, sources_of
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.local_optimizer import LocalOptimizer
from nufed.common.meta.local_update import LocalUpdate, Stream
from nufed.common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from nufed.common.meta.meta_sgd import learned_sizes, split_step_sizes
from nufed.common.meta.objective import initial_params, step_direction
from nufed.common.meta.observed_sizes import Watched, observed
from nufed.common.meta.parts import head_names
from nufed.common.meta.schedule import inner_sizes, scheduled
from nufed.common.params import Params
from nufed.common.steps.cohort_kernel import CohortBatch, CohortKernel, Stacked, clipped_each, norms, stack_params
from nufed.common.steps.cohort_steps import cohort_derivatives, cohort_steps
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


@dataclass(frozen=True)
class CohortUpdate:
    """The work of m clients in one round, stacked.

    Attributes:
        params: w_k^i, [m, ...] each.
        losses: mean over the τ outer batches of the loss after ν inner steps, [m] in float64.
        growth: the largest ‖∇F_i‖ / ‖∇f_i(w_ν)‖ of the τ steps, [m].
        costs: evaluations made for each client.
        with_replacement: for each client, whether some batch was drawn with replacement.
    """

    params: Params
    losses: Tensor
    growth: Tensor
    costs: Costs
    with_replacement: tuple[bool, ...]

    def each(self) -> list[LocalUpdate]:
        """Return each client's own update, in main memory; what a device holds is copied once for all clients."""
        losses, growth = self.losses.tolist(), self.growth.tolist()
        here = {name: tensor.cpu() for name, tensor in self.params.items()}
        return [
            LocalUpdate({name: tensor[number] for name, tensor in here.items()}, loss, largest, self.costs, replaced)
            for number, (loss, largest, replaced) in enumerate(zip(losses, growth, self.with_replacement, strict=True))
        ]


def cohort_update(kernel: CohortKernel, trainees: Sequence[Trainee], method: MethodConfig) -> list[LocalUpdate]:
    """Return each client's model after τ meta steps, in the order given; arguments and errors of `stacked_update`."""
    return stacked_update(kernel, trainees, method).each()


def stacked_update(
    kernel: CohortKernel, trainees: Sequence[Trainee], method: MethodConfig, start: Params | None = None
) -> CohortUpdate:
    """Return the clients' models after τ meta steps, stacked; nothing is read from a device.

    Args:
        kernel: computes the clients' losses.
        trainees: of one model and one kind of data; of equal batch sizes (`batch_sizes`) unless the kernel pads.
        method: ν, α, τ, β, batch sizes and estimator.
        start: stacked models to begin with, in the place of those that the clients were sent.

    Raises:
        ConfigError: the estimator is unknown, or is computed for one client at a time only.
        DataError: a support split cannot be divided as `outer-holdout-fraction` asks.
    """
    sent = stack_params([trainee.params for trainee in trainees]) if start is None else start
    if method.step_sizes == "observed":
        return _observed_update(kernel, trainees, method, sent)
    meta_gradient = _batched_estimator(kernel, method, sent)
    is_read_later = start is not None or method.proximal_strength > 0
    point = {name: tensor.clone() for name, tensor in sent.items()} if is_read_later else sent
    return _meta_steps(kernel, meta_gradient, trainees, method, (point, sent))


def _observed_update(
    kernel: CohortKernel, trainees: Sequence[Trainee], method: MethodConfig, sent: Params
) -> CohortUpdate:
    """Return the update of models whose step sizes are observed; all clients are asked in one round."""
    model = split_step_sizes(sent)[0]
    watched = Watched(_batched_estimator(kernel, method, model))
    point = {name: tensor.clone() for name, tensor in model.items()}
    update = _meta_steps(kernel, watched, trainees, method, (point, model))
    first = initial_params(model, method)
    arrays = observed(sent, update.params, watched.squares, round_number=trainees[0].stream.round, first=first)
    return replace(update, params=arrays)


def _meta_steps(
    kernel: CohortKernel,
    meta_gradient: MetaGradient[CohortBatch],
    trainees: Sequence[Trainee],
    method: MethodConfig,
    models: tuple[Params, Params],
) -> CohortUpdate:
    """Take τ meta steps; `models` are where they start, which is moved, and the server's."""
    point, server = models
    plan = _plan(method)
    sources = [_sources(trainee, method) for trainee in trainees]
    batches = _Batches(trainees, plan, sources, method.num_local_steps)
    losses, optimizer = list[Tensor](), LocalOptimizer(method)
    growth, costs = next(iter(point.values())).new_zeros(len(trainees)), Costs()
    for step in range(method.num_local_steps):
        kernel.start_step()
        estimate = meta_gradient(point, batches.draw(step))
        direction = step_direction(estimate.gradient, point, server, method, clipped_each)
        _descend_in_place(point, optimizer.velocity(direction), method.local_lr)
        losses.append(estimate.outer_loss)
        growths = _growths(estimate)
        # Unlike maximum, this passes over NaN as Python's max does.
        growth = torch.where(growths > growth, growths, growth)
        costs = costs + estimate.costs
    replaced = tuple(draws_with_replacement(plan, own) for own in sources)
    return CohortUpdate(point, torch.stack(losses).double().mean(0), growth, costs, replaced)


def _batched_estimator(
    kernel: CohortKernel, method: MethodConfig, params: Mapping[str, Tensor]
) -> MetaGradient[CohortBatch]:
    """Return the estimator of models with parameters of these names."""
    estimator = find_estimator(method.estimator)
    if method.step_sizes == "learned":
        return learned_sizes(cohort_derivatives(kernel), has_curvature=method.estimator != "first-order")
    if estimator.of_steps is None:
        raise ConfigError(
            f"method.estimator={method.estimator} is computed for one client at a time only. Use --engine local."
        )
    head = head_names(params, method.head) if method.adapted_part == "head" else None
    steps = scheduled(lambda size: cohort_steps(kernel, size, head), inner_sizes(method))
    return estimator.of_steps(steps, method)


def _growths(estimate: Estimate) -> Tensor:
    """Return ‖∇F_i‖ / ‖∇f_i(w_ν)‖ of each client, [m]; 1 where the divisor is 0 or no number."""
    outer_norms = torch.as_tensor(estimate.outer_norm)
    return torch.where(outer_norms > 0, norms(estimate.gradient) / outer_norms, torch.ones_like(outer_norms))


def batch_sizes(trainee: Trainee, method: MethodConfig) -> tuple[int, ...]:
    """Return the sizes of O, I_0 … I_{ν-1}, H_0 …; they differ between clients where a batch is all of the data.

    Raises:
        ConfigError: the estimator is unknown.
        DataError: the support split cannot be divided as `outer-holdout-fraction` asks.
    """
    return _sizes(_plan(method), _sources(trainee, method))


def _plan(method: MethodConfig) -> BatchPlan:
    return batch_plan(method, uses_hessian_batches=find_estimator(method.estimator).uses_hessian_batches)


def _sources(trainee: Trainee, method: MethodConfig) -> Sources:
    stream = trainee.stream
    return sources_of(trainee.support, method.outer_holdout_fraction, seed=stream.seed, client_id=stream.client_id)


def _sizes(plan: BatchPlan, sources: Sources) -> tuple[int, ...]:
    return (
        plan.outer_size or len(sources.outer),
        *[plan.inner_size or len(sources.inner)] * plan.num_inner,
        *[plan.hessian_size or len(sources.inner)] * plan.num_hessian,
    )


def _descend_in_place(point: Params, gradient: Stacked, step_size: float) -> None:
    """Move the cohort's own stacked parameters; new ones in each step would cost as much time as the arithmetic."""
    torch._foreach_add_(list(point.values()), [gradient[name] for name in point], alpha=-step_size)


class _Batches:
    """Draws and gathers the clients' batches; holds one step's inputs, which the next step's overwrite."""

    def __init__(
        self, trainees: Sequence[Trainee], plan: BatchPlan, sources: Sequence[Sources], num_steps: int
    ) -> None:
        self._trainees, self._plan, self._sources, self._num_steps = trainees, plan, sources, num_steps
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
        drawn = draw_indices(self._plan, self._sources[number], self._trainees[number].stream.step_seed(step))
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
