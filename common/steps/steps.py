"""The inner step w ↦ w - α ∇f(w; I) and what the estimators need of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from nufed.common.examples import Batch
from nufed.common.params import Params, add_scaled
from nufed.common.steps.differentiate import (
    gradient,
    gradient_graph,
    gradient_graph_product,
    hessian_vector_product,
    value_and_gradient,
)
from nufed.common.task import LossFn

PullBack = Callable[[Params], Params]


@dataclass(frozen=True)
class SizedPullBack:
    """A pull-back that knows what it keeps; of one that keeps an autograd graph, PyTorch tells.

    Attributes:
        apply: v ↦ (I - α ∇²f(w; I)) v.
        num_bytes: bytes kept alive beside w and I.
    """

    apply: PullBack
    num_bytes: Callable[[], int]

    def __call__(self, direction: Params) -> Params:
        """Return (I - α ∇²f(w; I)) v."""
        return self.apply(direction)


@dataclass(frozen=True)
class Steps:
    """One client's inner step, in four forms; all results are detached.

    Attributes:
        value_and_gradient: (w, O) -> f(w; O) and ∇f(w; O).
        descend: (w, I) -> w - α ∇f(w; I).
        linearize: (w, I) -> w - α ∇f(w; I), and v ↦ (I - α ∇²f(w; I)) v; what the second needs is kept.
        pull_back: (w, H, v) -> (I - α ∇²f(w; H)) v, nothing kept.
    """

    value_and_gradient: Callable[[Mapping[str, Tensor], Batch], tuple[Tensor, Params]]
    descend: Callable[[Mapping[str, Tensor], Batch], Params]
    linearize: Callable[[Mapping[str, Tensor], Batch], tuple[Params, PullBack]]
    pull_back: Callable[[Mapping[str, Tensor], Batch, Params], Params]


MakeSteps = Callable[[LossFn, float], Steps]


def autograd_steps(loss: LossFn, inner_lr: float) -> Steps:
    """Return the steps by PyTorch's autograd: Hessian-vector products by double backward."""

    def descend(params: Mapping[str, Tensor], batch: Batch) -> Params:
        return add_scaled(params, gradient(loss, params, batch), -inner_lr)

    def linearize(params: Mapping[str, Tensor], batch: Batch) -> tuple[Params, PullBack]:
        point, gradients = gradient_graph(loss, params, batch)

        def pull_back(direction: Params) -> Params:
            return add_scaled(direction, gradient_graph_product(point, gradients, direction), -inner_lr)

        return add_scaled(point, gradients, -inner_lr), pull_back

    def pull_back(params: Mapping[str, Tensor], batch: Batch, direction: Params) -> Params:
        return add_scaled(direction, hessian_vector_product(loss, params, direction, batch), -inner_lr)

    return Steps(lambda params, batch: value_and_gradient(loss, params, batch), descend, linearize, pull_back)
