"""A round of several clients that keep something from round to round, as one batched computation.

What they do is in `nufed.common.meta.client_state`, whose functions have the same names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.config.method import alternates
from nufed.common.meta.client_state import own_names
from nufed.common.meta.cohort import CohortUpdate, Envelope, held_step, meta_steps, stacked_update
from nufed.common.meta.cohort_batches import CohortBatches, Trainee, plan_of, trainee_sources
from nufed.common.meta.draw import BatchPlan, draws_with_replacement
from nufed.common.meta.first_order import first_order
from nufed.common.meta.meta_gradient import Costs
from nufed.common.meta.objective import Objective
from nufed.common.meta.parts import head_names
from nufed.common.meta.schedule import inner_sizes, size_at
from nufed.common.params import Params
from nufed.common.steps.cohort_kernel import CohortKernel, stack_params
from nufed.common.steps.cohort_steps import cohort_steps

Kept = Sequence[Mapping[str, Tensor] | None]


def stacked_update_with_state(
    kernel: CohortKernel, trainees: Sequence[Trainee], method: MethodConfig, kept: Kept
) -> tuple[CohortUpdate, Params]:
    """Return the clients' work in one round, and what each keeps for the next one, stacked.

    Args:
        kernel: computes the clients' losses.
        trainees: as those of `stacked_update`.
        method: with `client_state` other than none.
        kept: for each client, what it kept in the last round that it took part in; None before its first one.
    """
    sent = stack_params([trainee.params for trainee in trainees])
    if method.objective == "moreau":
        envelope = Envelope(kernel, method, goes_on=True)
        update = meta_steps(kernel, Objective(envelope, _outer_alone(method)), trainees, method, (_copy(sent), sent))
        return update, envelope.reached
    start = stack_params([{**trainee.params, **(own or {})} for trainee, own in zip(trainees, kept, strict=True)])
    if method.client_state == "model":
        update = stacked_update(kernel, trainees, method)
        costs = _personal_steps(kernel, trainees, method, start, sent)
        return replace(update, costs=update.costs + costs), start
    if alternates(method):
        update = _alternating_update(kernel, trainees, method, start)
    else:
        update = stacked_update(kernel, trainees, method, start)
    own = {name: update.params[name] for name in own_names(update.params, method)}
    return replace(update, params={**update.params, **{name: sent[name] for name in own}}), own


def _personal_steps(
    kernel: CohortKernel, trainees: Sequence[Trainee], method: MethodConfig, point: Params, sent: Params
) -> Costs:
    """Move the clients' own models by the round's steps, held to the server's; return what they cost (Ditto)."""
    num_steps = method.num_personal_steps or method.num_local_steps
    sources = [trainee_sources(trainee, method) for trainee in trainees]
    batches = CohortBatches(trainees, _outer_alone(method), sources, num_steps, purpose="personal")
    for step in range(num_steps):
        kernel.start_step()
        held_step(kernel, point, batches.draw(step).outer, (sent, method.personal_strength), method.inner_lr)
    return Costs(num_steps)


def _alternating_update(
    kernel: CohortKernel, trainees: Sequence[Trainee], method: MethodConfig, start: Params
) -> CohortUpdate:
    """Return ν steps of the heads, then τ steps of the bodies with the heads as they are then; its growth is 1."""
    plan = replace(plan_of(method), num_hessian=0)
    sources = [trainee_sources(trainee, method) for trainee in trainees]
    kernel.start_step()
    point, head, sizes = start, head_names(start, method.head), inner_sizes(method)
    for step, batch in enumerate(CohortBatches(trainees, plan, sources, 1).draw(0).inner):
        point = kernel.tape(point, batch, curvature=False, moved=head).descend(size_at(sizes, step))
    point = _copy({name: point[name] for name in start})  # out of the memory that the next step overwrites
    plain = Objective(first_order(cohort_steps(kernel, method.inner_lr)), _outer_alone(method))
    update = meta_steps(kernel, plain, trainees, method, (_copy(point), point))
    return replace(
        update,
        growth=torch.ones_like(update.growth),
        costs=update.costs + Costs(method.num_inner_steps),
        with_replacement=tuple(draws_with_replacement(plan, own) for own in sources),
    )


def _outer_alone(method: MethodConfig) -> BatchPlan:
    return replace(plan_of(method), num_inner=0, num_hessian=0)


def _copy(params: Mapping[str, Tensor]) -> Params:
    return {name: tensor.clone() for name, tensor in params.items()}
