"""A round of a client that keeps something to itself from round to round: its head, its body, or a model of its own.

Collins, Hassani, Mokhtari and Shakkottai, ICML 2021, Algorithm 1 (FedRep): h = h_i; ν steps of h, then τ steps of the
body, of which the body goes back. Arivazhagan, Aggarwal, Singh and Choudhary, arXiv 1912.00818, 2019 (FedPer): τ steps
of both. Liang et al., arXiv 2001.01523, 2020 (LG-FedAvg): likewise, and the head goes back. Li, Hu, Beirami and Smith,
ICML 2021, Algorithm 1 (Ditto): v = v - α (∇f(v) + λ (v - w_k)) beside the shared model. T. Dinh, Tran and Nguyen,
NeurIPS 2020, Algorithm 1 (pFedMe): the ŵ of the last local step.

Nothing that is kept goes to the server: in the place of a part of its own, a client sends back what it was sent.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.config.method import alternates
from nufed.common.examples import Batch, Examples
from nufed.common.meta.draw import (
    BatchPlan,
    Sources,
    batch_plan,
    draw_indices,
    draws_with_replacement,
    sources_of,
    take_batches,
)
from nufed.common.meta.local_optimizer import LocalOptimizer
from nufed.common.meta.local_update import LocalUpdate, Stream, local_update
from nufed.common.meta.meta_gradient import Costs, MetaBatches
from nufed.common.meta.objective import step_direction
from nufed.common.meta.parts import adapt_head, head_names
from nufed.common.meta.proximal import moreau_step, proximal_loss
from nufed.common.meta.schedule import inner_sizes
from nufed.common.params import Params, add_scaled
from nufed.common.rng import derive_seed
from nufed.common.steps.differentiate import gradient, value_and_gradient
from nufed.common.task import LossFn


def own_names(params: Mapping[str, Tensor], method: MethodConfig) -> list[str]:
    """Return the names of what a client keeps of a model with these parameters, in their order."""
    head = set(head_names(params, method.head))
    kept = {"none": set(), "head": head, "body": params.keys() - head, "model": set(params)}[method.client_state]
    return [name for name in params if name in kept]


def update_with_state(  # noqa: PLR0913 - what `local_update` takes, and what was kept
    loss: LossFn,
    params: Mapping[str, Tensor],
    support: Examples,
    method: MethodConfig,
    stream: Stream,
    *,
    kept: Mapping[str, Tensor] | None,
) -> tuple[LocalUpdate, Params]:
    """Return the client's work in one round, and what it keeps for the next one.

    Arguments and errors as those of `local_update`, and

    Args:
        loss: the client's loss, in training mode.
        params: the server's model, w_k; not changed.
        support: examples that all batches are drawn from.
        method: with `client_state` other than none.
        stream: what the draws are keyed by.
        kept: what the client kept in the last round that it took part in; None before its first one, in which it
            starts from the server's model.
    """
    if method.objective == "moreau":
        return _moreau_update(loss, params, support, method, stream)
    if method.client_state == "model":
        update = local_update(loss, params, support, method, stream)
        own, costs = personal_steps(loss, params, support, method, stream, kept=kept)
        return replace(update, costs=update.costs + costs), own
    start = {**params, **(kept or {})}
    if alternates(method):
        update = _alternating_update(loss, start, support, method, stream)
    else:
        update = local_update(loss, start, support, method, stream)
    own = {name: update.params[name] for name in own_names(params, method)}
    return replace(update, params={**update.params, **{name: params[name] for name in own}}), own


def personal_steps(  # noqa: PLR0913 - what `local_update` takes, and what was kept
    loss: LossFn,
    params: Mapping[str, Tensor],
    support: Examples,
    method: MethodConfig,
    stream: Stream,
    *,
    kept: Mapping[str, Tensor] | None,
) -> tuple[Params, Costs]:
    """Return a client's own model after the round's steps, held to the server's, and what they cost (Ditto)."""
    held, point = proximal_loss(loss, params, method.personal_strength), dict(kept or params)
    draws = _Draws(support, method, stream, purpose="personal")
    num_steps = method.num_personal_steps or method.num_local_steps
    for step in range(num_steps):
        point = add_scaled(point, gradient(held, point, draws.batches(step).outer), -method.inner_lr)
    return point, Costs(num_steps)


def _moreau_update(
    loss: LossFn, params: Mapping[str, Tensor], support: Examples, method: MethodConfig, stream: Stream
) -> tuple[LocalUpdate, Params]:
    """Return τ steps on the Moreau envelope, each begun at the ŵ of the one before, and the last ŵ."""
    draws, point, personal = _Draws(support, method, stream), dict(params), dict(params)
    losses, growth, costs, optimizer = [], 0.0, Costs(), LocalOptimizer(method)
    for step in range(method.num_local_steps):
        estimate, personal = moreau_step(
            loss,
            point,
            personal,
            draws.batches(step).outer,
            inner_lr=inner_sizes(method),
            num_steps=method.num_inner_steps,
            strength=method.personal_strength,
        )
        direction = step_direction(estimate.gradient, point, params, method)
        point = add_scaled(point, optimizer.velocity(direction), -method.local_lr)
        losses.append(estimate.outer_loss)
        growth, costs = max(growth, estimate.growth()), costs + estimate.costs
    return LocalUpdate(point, _mean(losses), growth, costs, draws.with_replacement), personal


def _alternating_update(
    loss: LossFn, params: Mapping[str, Tensor], support: Examples, method: MethodConfig, stream: Stream
) -> LocalUpdate:
    """Return ν steps of the head, then τ steps of the body with the head as it is then; its `growth` is 1."""
    draws, losses = _Draws(support, method, stream, num_inner=method.num_inner_steps), []
    *_, point = adapt_head(loss, params, draws.batches(0).inner, inner_sizes(method), method.head)
    start, optimizer = dict(point), LocalOptimizer(method)
    for step in range(method.num_local_steps):
        value, direction = value_and_gradient(loss, point, draws.batches(step).outer)
        direction = optimizer.velocity(step_direction(direction, point, start, method))
        point = add_scaled(point, direction, -method.local_lr)
        losses.append(value)
    costs = Costs(method.num_inner_steps + method.num_local_steps)
    return LocalUpdate(point, _mean(losses), 1.0, costs, draws.with_replacement)


class _Draws:
    """Draws a round's batches one step at a time, as `local_update` does; holds what they are drawn from."""

    def __init__(
        self, support: Examples, method: MethodConfig, stream: Stream, *, num_inner: int = 0, purpose: str = ""
    ) -> None:
        plan = batch_plan(method, uses_hessian_batches=False)
        self._plan: BatchPlan = replace(plan, num_inner=num_inner, num_hessian=0)
        self._sources: Sources = sources_of(
            support, method.outer_holdout_fraction, seed=stream.seed, client_id=stream.client_id
        )
        self._support, self._stream, self._purpose = support, stream, purpose
        self.with_replacement = draws_with_replacement(self._plan, self._sources)

    def batches(self, step: int) -> MetaBatches[Batch]:
        """Return the batches of a step; inner ones belong to the first alone."""
        seed = self._stream.step_seed(step)
        seed = derive_seed(seed, self._purpose) if self._purpose else seed
        plan = self._plan if step == 0 else replace(self._plan, num_inner=0)
        indices = draw_indices(plan, self._sources, seed)
        return take_batches(self._support, indices, plan.num_inner, seed if self._stream.masks else None)


def _mean(losses: list[Tensor]) -> float:
    return float(torch.stack(losses).double().mean())
