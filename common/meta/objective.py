"""What a client descends on, from the method's options: objective, step direction, and fine-tuning."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Generic

from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.examples import Batch
from nufed.common.meta.adapt import adapt
from nufed.common.meta.draw import BatchPlan, batch_plan
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.implicit import implicit_gradient
from nufed.common.meta.meta_gradient import Estimate, MetaBatches, MetaGradient
from nufed.common.meta.meta_sgd import adapt_by_sizes, meta_sgd, split_step_sizes, with_step_sizes
from nufed.common.meta.observed_sizes import with_observations
from nufed.common.meta.parts import adapt_head, without_head
from nufed.common.meta.proximal import moreau_gradient, proximal_loss, proximal_pull
from nufed.common.meta.schedule import inner_sizes
from nufed.common.params import Params, add_scaled, clipped
from nufed.common.steps.steps import AnyBatch
from nufed.common.task import LossFn


@dataclass(frozen=True)
class Objective(Generic[AnyBatch]):
    """A way to the gradient of what a client minimizes, or several clients, and the batches that it reads."""

    meta_gradient: MetaGradient[AnyBatch]
    plan: BatchPlan


def build_objective(loss: LossFn, method: MethodConfig) -> Objective:
    """Return the method's objective for a client's loss.

    Raises:
        ConfigError: the estimator is unknown.
    """
    estimator = find_estimator(method.estimator)
    plan = batch_plan(method, uses_hessian_batches=estimator.uses_hessian_batches)
    if method.objective == "moreau":
        gradient = moreau_gradient(
            loss, inner_lr=inner_sizes(method), num_steps=method.num_inner_steps, strength=method.personal_strength
        )
        return Objective(gradient, replace(plan, num_inner=0, num_hessian=0))
    if method.objective == "implicit":
        implicit = implicit_gradient(
            loss,
            inner_lr=inner_sizes(method),
            strength=method.personal_strength,
            cg_steps=method.cg_steps,
            damping=method.cg_damping,
        )
        own = 0 if method.hessian_batch_size < 0 else min(1, plan.num_hessian)
        return Objective(_on_one_batch(implicit, method.num_inner_steps), replace(plan, num_inner=1, num_hessian=own))
    if method.step_sizes == "learned":
        return Objective(meta_sgd(loss, has_curvature=method.estimator != "first-order"), plan)
    return Objective(estimator.build(loss, method), plan)


def _on_one_batch(meta_gradient: MetaGradient, num_steps: int) -> MetaGradient:
    """Return the estimator with all steps on one inner batch: a minimum is that of one loss."""

    def of_one(params: Mapping[str, Tensor], batches: MetaBatches) -> Estimate:
        return meta_gradient(params, replace(batches, inner=batches.inner[:1] * num_steps))

    return of_one


def initial_params(params: Params, method: MethodConfig) -> Params:
    """Return what a run starts from: the model's parameters, and step sizes where these are learned or observed."""
    if method.step_sizes == "observed":
        return with_observations(params, method.inner_lr, method.observed_zeta)
    return with_step_sizes(params, method.inner_lr) if method.step_sizes == "learned" else params


def step_direction(
    gradient: Params,
    point: Mapping[str, Tensor],
    server: Mapping[str, Tensor],
    method: MethodConfig,
    clip: Callable[[Params, float], Params] = clipped,
) -> Params:
    """Return what a meta step goes against: the gradient with FedProx's pull, of the trained part, at most so long.

    Args:
        gradient: estimate of ∇F_i at the point.
        point: where the client is.
        server: w_k.
        method: μ, the part that is trained and the largest norm.
        clip: scales down what is longer, of one client or of several, stacked.
    """
    if method.proximal_strength:
        gradient = add_scaled(gradient, proximal_pull(point, server, method.proximal_strength), 1.0)
    if method.trained_part == "body":
        gradient = without_head(gradient, method.head)
    return clip(gradient, method.max_grad_norm) if method.max_grad_norm else gradient


def fine_tune(  # noqa: PLR0913 - all but five by name
    loss: LossFn,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    step_size: float,
    method: MethodConfig,
    *,
    kept: Mapping[str, Tensor] | None = None,
) -> Iterator[Params]:
    """Yield the model after 0, 1, 2, … fine-tuning steps at test time, one on each batch, as the method makes them.

    A client's own head or body takes the place of the shared one, and a model of its own is where the steps start,
    held to the shared model.

    Args:
        loss: the client's loss.
        params: the server's arrays; not changed. The models yielded have no step sizes.
        batches: one per step, read as the steps are taken.
        step_size: α of test time; not read where step sizes are learned, observed or a list.
        method: λ, the part that is adapted, and the kind of step sizes.
        kept: what the client keeps between rounds; None for one that has taken part in none.
    """
    model, sizes = split_step_sizes(params)
    if kept and method.client_state != "model":
        model = {**model, **kept}
    if method.personal_strength:
        loss = proximal_loss(loss, model, method.personal_strength)
    if method.step_sizes != "fixed":
        return adapt_by_sizes(loss, model, sizes, batches)
    if method.adapted_part == "head":
        return adapt_head(loss, model, batches, inner_sizes(method, step_size), method.head)
    start = {name: kept[name] for name in model} if kept and method.client_state == "model" else model
    return adapt(loss, start, batches, inner_sizes(method, step_size))
