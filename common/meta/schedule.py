"""Step sizes α_0 … α_{ν-1} of the ν fine-tuning steps, where they are not all the same.

The objective is then F_i(w) = f_i(w_ν) with w_{j+1} = w_j - α_j ∇f_i(w_j), and its gradient has the factors
I - α_j ∇²f_i(w_j). At test time the steps have the same sizes in the same order; those beyond ν have the last one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from nufed.common.config import MethodConfig
from nufed.common.steps.steps import AnyBatch, Steps


def inner_sizes(method: MethodConfig, step_size: float | None = None) -> tuple[float, ...]:
    """Return α_0 … α_{ν-1}; one size where they are all the same, also for ν = 0.

    Args:
        method: its schedule says them, as shares of α or as a list.
        step_size: another α, that of test time; not read where they are a list.

    Examples:
        >>> inner_sizes(MethodConfig(num_inner_steps=4, inner_lr=1.0, inner_schedule="linear"))
        (1.0, 0.75, 0.5, 0.25)
    """
    base, nu = method.inner_lr if step_size is None else step_size, method.num_inner_steps
    if method.inner_schedule == "constant":
        return (base,)
    if method.inner_schedule == "linear":
        return tuple(base * ((nu - step) / nu) for step in range(nu))
    if method.inner_schedule == "cosine":
        return tuple(base * 0.5 * (1 + math.cos(math.pi * step / nu)) for step in range(nu))
    return tuple(float(size) for size in method.inner_schedule.split(","))


def size_at(sizes: Sequence[float], step: int) -> float:
    """Return α_j, the last size beyond the end."""
    return sizes[min(step, len(sizes) - 1)]


def scheduled(make: Callable[[float], Steps[AnyBatch]], sizes: Sequence[float]) -> Steps[AnyBatch]:
    """Return the inner steps of these sizes, of which `Steps.at` finds each; those of one size where they are equal.

    Args:
        make: from a size to steps of it.
        sizes: α_0 … α_{ν-1}.
    """
    made = {size: make(size) for size in sizes}
    return replace(made[sizes[0]], scheduled=tuple(made[size] for size in sizes)) if len(made) > 1 else made[sizes[0]]
