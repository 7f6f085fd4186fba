"""What a chosen client does in a round: τ meta steps from the server's model (docs/theory.md, section 1).

w = w_k
for t = 0 … τ-1:   draw I_0…I_{ν-1}, O, H_0…H_{ν-1};   w = w - β · estimate of ∇F_i(w)
return w, N_i
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.examples import Examples
from nufed.common.meta.draw import draw_indices, draws_with_replacement, sources_of, take_batches
from nufed.common.meta.meta_gradient import Costs
from nufed.common.meta.objective import build_objective, step_direction
from nufed.common.params import Params, add_scaled
from nufed.common.rng import derive_seed
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
    """

    params: Params
    loss: float
    growth: float
    costs: Costs
    with_replacement: bool


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
    point, losses, growth, costs = dict(params), [], 0.0, Costs()
    for step in range(method.num_local_steps):
        step_seed = stream.step_seed(step)
        indices = draw_indices(plan, sources, step_seed)
        batches = take_batches(support, indices, plan.num_inner, step_seed if stream.masks else None)
        estimate = objective.meta_gradient(point, batches)
        point = add_scaled(point, step_direction(estimate.gradient, point, params, method), -method.local_lr)
        losses.append(estimate.outer_loss)
        growth, costs = max(growth, estimate.growth()), costs + estimate.costs
    mean_loss = float(torch.stack(losses).double().mean())
    return LocalUpdate(point, mean_loss, growth, costs, draws_with_replacement(plan, sources))
