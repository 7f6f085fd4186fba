"""The registry of estimators: one name, one signature each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from nufed.common.config import MethodConfig
from nufed.common.meta.exact import exact
from nufed.common.meta.first_order import first_order
from nufed.common.meta.hessian_free import Difference, caution_of_kinks, hessian_free
from nufed.common.meta.meta_gradient import MetaGradient
from nufed.common.meta.parts import head_steps
from nufed.common.meta.schedule import inner_sizes, scheduled
from nufed.common.meta.unrolled import unrolled
from nufed.common.registry import find_registered
from nufed.common.steps.eager_steps import eager_steps
from nufed.common.steps.kept_graphs import Memory
from nufed.common.steps.steps import MakeSteps, Steps
from nufed.common.task import LossFn

HVP_COST = 2.4
"""Gradients that a Hessian-vector product costs (docs/theory.md)."""


@dataclass(frozen=True)
class Estimator:
    """A way of computing ∇F_i; either `of_steps` or `of_loss` says how.

    Attributes:
        summary: one line for the command line.
        uses_hessian_batches: whether it reads batches of its own for the Hessians.
        step_cost: ν ↦ gradients that one meta step costs, for ν of at least 1.
        of_steps: from the inner step to the estimator. It serves one client, and several at once whose parameters are
            stacked, so it does arithmetic on parameters by `steps.algebra` alone.
        of_loss: from a client's loss to the estimator, for what the forms of `Steps` do not offer; every engine then
            computes it for one client at a time.
        caution: warns of losses that the estimator does not suit.
        differentiates_twice: whether it takes second derivatives by autograd, which a model is then examined for.
    """

    summary: str
    uses_hessian_batches: bool
    step_cost: Callable[[int], float]
    of_steps: Callable[[Steps[Any], MethodConfig], MetaGradient[Any]] | None = None
    of_loss: Callable[[LossFn, MethodConfig], MetaGradient] | None = None
    caution: Callable[[LossFn, MethodConfig], None] | None = None
    differentiates_twice: bool = True

    def build(self, loss: LossFn, method: MethodConfig) -> MetaGradient:
        """Return the estimator for one client's loss."""
        if self.caution:
            self.caution(loss, method)
        if self.of_steps:
            make = _make_steps(method)
            return self.of_steps(scheduled(lambda size: make(loss, size), inner_sizes(method)), method)
        if self.of_loss:
            return self.of_loss(loss, method)
        raise AssertionError(f"{self} says of nothing how it is computed")


def _make_steps(method: MethodConfig) -> MakeSteps:
    """Return how inner steps are computed; auto that nobody settled (nufed.common.steps.compile_choice) is off."""
    if method.adapted_part == "head":
        return partial(head_steps, named=method.head)
    if method.compile != "on":
        return eager_steps
    from nufed.common.steps.compiled_steps import compiled_steps  # loads PyTorch's tracer

    return compiled_steps


def _exact(steps: Steps[Any], method: MethodConfig) -> MetaGradient[Any]:
    """Return `exact`; where Hessian batches are the inner ones, the graphs of the inner steps could serve twice."""
    if method.hessian_batches == "inner" and method.memory == "fast":
        return _unrolled(steps, method)
    return exact(steps)


def _unrolled(steps: Steps[Any], method: MethodConfig) -> MetaGradient[Any]:
    compiled = method.compile == "on"  # whose residuals are few, and are not measured
    memory: Memory = "fast" if compiled and method.memory == "auto" else method.memory
    return unrolled(steps, memory=memory)


def _difference(method: MethodConfig) -> Difference:
    return Difference(
        method.hessian_free_delta,
        method.hessian_free_displacement,
        method.hessian_free_difference,
        method.hessian_free_dtype,
    )


ESTIMATORS = {
    "exact": Estimator(
        "ν Hessian-vector products on fresh batches; ν+1 gradients, memory of ν parameter vectors",
        uses_hessian_batches=True,
        step_cost=lambda nu: nu + 1.0 + HVP_COST * nu,
        of_steps=_exact,
    ),
    "unrolled": Estimator(
        "exact for mini-batch fine-tuning, Hessians on the inner batches; fastest, memory of ν graphs",
        uses_hessian_batches=False,
        step_cost=lambda nu: nu + 1.0 + HVP_COST * nu,
        of_steps=_unrolled,
    ),
    "first-order": Estimator(
        "Hessians dropped; ν+1 gradients, a different and weaker objective",
        uses_hessian_batches=False,
        step_cost=lambda nu: nu + 1.0,
        of_steps=lambda steps, _method: first_order(steps),
        differentiates_twice=False,
    ),
    "hessian-free": Estimator(
        "Hessian-vector products by differences; 3ν+1 gradients (2ν+1 at best), no double backward",
        uses_hessian_batches=True,
        step_cost=lambda nu: 3.0 * nu + 1.0,
        of_steps=lambda steps, method: hessian_free(steps, difference=_difference(method)),
        caution=lambda loss, method: caution_of_kinks(loss, _difference(method)),
        differentiates_twice=False,
    ),
}


def find_estimator(name: str) -> Estimator:
    """Return the registered estimator.

    Raises:
        ConfigError: the name is unknown.
    """
    return find_registered(ESTIMATORS, name, what="estimator", option="method.estimator")
