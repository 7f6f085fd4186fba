"""The registry of estimators: one name, one signature each."""

from collections.abc import Callable
from dataclasses import dataclass

from nufed.common.config import MethodConfig
from nufed.common.meta.exact import exact
from nufed.common.meta.first_order import first_order
from nufed.common.meta.hessian_free import Difference, hessian_free
from nufed.common.meta.meta_gradient import MetaGradient
from nufed.common.meta.parts import head_steps
from nufed.common.meta.unrolled import unrolled
from nufed.common.registry import find_registered
from nufed.common.steps.eager_steps import eager_steps
from nufed.common.steps.kept_graphs import Memory
from nufed.common.steps.steps import MakeSteps
from nufed.common.task import LossFn


@dataclass(frozen=True)
class Estimator:
    """A way of computing ∇F_i.

    Attributes:
        build: from a loss and the method's options to the estimator.
        uses_hessian_batches: whether it reads batches of its own for the Hessians.
        summary: one line for the command line.
    """

    build: Callable[[LossFn, MethodConfig], MetaGradient]
    uses_hessian_batches: bool
    summary: str


def _make_steps(method: MethodConfig) -> MakeSteps:
    """Return how inner steps are computed; auto that nobody settled (nufed.common.steps.compile_choice) is off."""
    if method.adapted_part == "head":
        return head_steps
    if method.compile != "on":
        return eager_steps
    from nufed.common.steps.compiled_steps import compiled_steps  # loads PyTorch's tracer

    return compiled_steps


def _exact(loss: LossFn, method: MethodConfig) -> MetaGradient:
    """Return `exact`; where Hessian batches are the inner ones, the graphs of the inner steps could serve twice."""
    if method.hessian_batches == "inner" and method.memory == "fast":
        return _unrolled(loss, method)
    return exact(loss, inner_lr=method.inner_lr, make_steps=_make_steps(method))


def _unrolled(loss: LossFn, method: MethodConfig) -> MetaGradient:
    compiled = method.compile == "on"  # whose residuals are few, and are not measured
    memory: Memory = "fast" if compiled and method.memory == "auto" else method.memory
    return unrolled(loss, inner_lr=method.inner_lr, memory=memory, make_steps=_make_steps(method))


def _first_order(loss: LossFn, method: MethodConfig) -> MetaGradient:
    return first_order(loss, inner_lr=method.inner_lr, make_steps=_make_steps(method))


def _hessian_free(loss: LossFn, method: MethodConfig) -> MetaGradient:
    difference = Difference(
        method.hessian_free_delta,
        method.hessian_free_displacement,
        method.hessian_free_difference,
        method.hessian_free_dtype,
    )
    return hessian_free(loss, inner_lr=method.inner_lr, difference=difference, make_steps=_make_steps(method))


ESTIMATORS = {
    "exact": Estimator(
        _exact,
        uses_hessian_batches=True,
        summary="ν Hessian-vector products on fresh batches; ν+1 gradients, memory of ν parameter vectors",
    ),
    "unrolled": Estimator(
        _unrolled,
        uses_hessian_batches=False,
        summary="exact for mini-batch fine-tuning, Hessians on the inner batches; fastest, memory of ν graphs",
    ),
    "first-order": Estimator(
        _first_order,
        uses_hessian_batches=False,
        summary="Hessians dropped; ν+1 gradients, a different and weaker objective",
    ),
    "hessian-free": Estimator(
        _hessian_free,
        uses_hessian_batches=True,
        summary="Hessian-vector products by differences; 3ν+1 gradients (2ν+1 at best), no double backward",
    ),
}


def find_estimator(name: str) -> Estimator:
    """Return the registered estimator.

    Raises:
        ConfigError: the name is unknown.
    """
    return find_registered(ESTIMATORS, name, what="estimator", option="method.estimator")
