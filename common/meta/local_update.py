"""What a chosen client does in a round: τ meta steps from the server's model (docs/theory.md, section 1).

w = w_k
for t = 0 … τ-1:   draw I_0…I_{ν-1}, O, H_0…H_{ν-1};   w = w - β · estimate of ∇F_i(w)
return w, N_i
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.examples import Examples
from nufed.common.meta.draw import batch_plan, draw_indices, draws_with_replacement, sources_of, take_batches
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.local_optimizer import LocalOptimizer
from nufed.common.meta.meta_gradient import Costs, MetaBatches, MetaGradient
from nufed.common.meta.meta_sgd import split_step_sizes
from nufed.common.meta.objective import build_objective, initial_params, step_direction
from nufed.common.meta.observed_sizes import Watched, observed
from nufed.common.meta.poisson import PoissonBatches
from nufed.common.meta.private_steps import Protection, private_steps
from nufed.common.meta.schedule import inner_sizes, scheduled
from nufed.common.params import Params, add_scaled
from nufed.common.rng import derive_seed
from nufed.common.steps.steps import AnyBatch
from nufed.common.task import LossFn


@dataclass(frozen=True)
class Stream:
    """What a client's draws in one round are keyed by; nothing else decides them.

    Attributes:
        seed: the run's seed.
        client_id: stable name.
        round: k.
        masks: whether the model draws dropout masks, which then get seeds of their own.
    """

    seed: int
    client_id: str
    round: int
    masks: bool = False

    def step_seed(self, step: int) -> int:
        """Return the seed of local step t."""
        return derive_seed(self.seed, "client", self.client_id, "round", self.round, "step", step)


@dataclass(frozen=True)
class LocalUpdate:
    """A client's work in one round.

    Attributes:
        params: w_k^i.
        loss: loss after ν inner steps, mean over the τ outer batches; a number, also when it diverged.
        growth: ‖∇F_i‖ / ‖∇f_i(w_ν)‖, the largest of the τ steps.
        costs: evaluations made.
        with_replacement: whether some batch was larger than the data and drawn with replacement.
        measures: of the estimates, the largest of the τ steps each.
    """

    params: Params
    loss: float
    growth: float
    costs: Costs
    with_replacement: bool
    measures: Mapping[str, float] = field(default_factory=dict)


def local_update(
    loss: LossFn,
    params: Mapping[str, Tensor],
    support: Examples,
    method: MethodConfig,
    stream: Stream,
) -> LocalUpdate:
    """Return the client's model after τ meta steps.

    Args:
        loss: the client's loss, in training mode.
        params: the server's model, w_k; not changed.
        support: examples that all batches are drawn from.
        method: ν, α, τ, β, batch sizes and estimator.
        stream: what the draws are keyed by.

    Raises:
        ConfigError: the estimator is unknown.
        DataError: the support split cannot be divided as `outer-holdout-fraction` asks.
    """
    objective = build_objective(loss, method)
    plan = objective.plan
    sources = sources_of(support, method.outer_holdout_fraction, seed=stream.seed, client_id=stream.client_id)

    def draw(step: int) -> MetaBatches:
        step_seed = stream.step_seed(step)
        indices = draw_indices(plan, sources, step_seed)
        return take_batches(support, indices, plan.num_inner, step_seed if stream.masks else None)

    with_replacement = draws_with_replacement(plan, sources)
    if method.step_sizes != "observed":
        return _meta_steps(objective.meta_gradient, draw, params, method, with_replacement)
    model, watched = split_step_sizes(params)[0], Watched(objective.meta_gradient)
    update = _meta_steps(watched, draw, model, method, with_replacement)
    first = initial_params(model, method)
    arrays = observed(params, update.params, watched.squares, round_number=stream.round, first=first)
    return replace(update, params=arrays)


def private_update(  # noqa: PLR0913 - what `local_update` takes, and how it is protected
    loss: LossFn,
    params: Mapping[str, Tensor],
    support: Examples,
    method: MethodConfig,
    stream: Stream,
    *,
    protection: Protection,
    mapped: bool = True,
) -> LocalUpdate:
    """Return the client's model after τ meta steps with record-level differential privacy (docs/theory.md, section 10).

    Its `loss` is not private. Arguments and errors as those of `local_update`, of whose stream only the division of the
    support split is read, and

    Args:
        loss: the client's loss, which draws no random numbers.
        params: the server's model, w_k; not changed.
        support: examples that all batches are drawn from.
        method: ν, α, τ, β, batch sizes and estimator; of those that `nufed.common.privacy.rules` lets pass.
        stream: whose client it is.
        protection: clipping lengths, noise, and who is in each batch.
        mapped: whether examples are computed together; else one after another.
    """
    estimator = find_estimator(method.estimator)
    if estimator.of_steps is None:
        raise AssertionError(f"estimator {method.estimator} is refused under record-level privacy")
    # Graphs of inner steps are not kept: a product is its own pass over examples.
    steps = scheduled(lambda size: private_steps(loss, size, protection, mapped=mapped), inner_sizes(method))
    meta_gradient = estimator.of_steps(steps, method.model_copy(update={"memory": "low"}))
    plan = batch_plan(method, uses_hessian_batches=estimator.uses_hessian_batches)
    sources = sources_of(support, method.outer_holdout_fraction, seed=stream.seed, client_id=stream.client_id)
    batches = PoissonBatches(support, sources, plan, protection.source)
    return _meta_steps(meta_gradient, lambda _step: batches.draw(), params, method, with_replacement=False)


def _meta_steps(
    meta_gradient: MetaGradient[AnyBatch],
    draw: Callable[[int], MetaBatches[AnyBatch]],
    params: Mapping[str, Tensor],
    method: MethodConfig,
    with_replacement: bool,
) -> LocalUpdate:
    """Take τ meta steps from `params`, each on the batches that are drawn for it."""
    point, losses, growth, costs, optimizer = dict(params), [], 0.0, Costs(), LocalOptimizer(method)
    measures: dict[str, float] = {}
    for step in range(method.num_local_steps):
        estimate = meta_gradient(point, draw(step))
        direction = step_direction(estimate.gradient, point, params, method)
        point = add_scaled(point, optimizer.velocity(direction), -method.local_lr)
        losses.append(estimate.outer_loss)
        growth, costs = max(growth, estimate.growth()), costs + estimate.costs
        measures |= {name: max(measures.get(name, 0.0), value) for name, value in estimate.measures.items()}
    mean_loss = float(torch.stack(losses).double().mean())
    return LocalUpdate(point, mean_loss, growth, costs, with_replacement, measures)
