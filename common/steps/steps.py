"""The inner step w ↦ w - α ∇f(w; I) and what the estimators need of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, Self

from torch import Tensor
from typing_extensions import TypeVar  # with a default, which typing has from Python 3.13

from nufed.common.examples import Batch
from nufed.common.params import Params, add_scaled, norm
from nufed.common.steps.differentiate import (
    gradient,
    gradient_graph,
    gradient_graph_product,
    hessian_vector_product,
    value_and_gradient,
)
from nufed.common.task import LossFn

PullBack = Callable[[Params], Params]
Size = float | Tensor
TINY = 1e-30


class BatchLike(Protocol):
    """One client's batch, or those of several clients."""

    def double(self) -> Self:
        """Return the batch in float64."""


AnyBatch = TypeVar("AnyBatch", bound=BatchLike, default=Batch)


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
class Algebra:
    """Arithmetic on one model's parameters, or on those of several clients, where each is a vector by itself.

    Numbers are floats for one model, and tensors [m] for m clients.

    Attributes:
        norm: v ↦ ‖v‖.
        add_scaled: (x, v, h) ↦ x + h v, with one h for all or one for each.
        ratio: (a, b) ↦ a / b, where b is never below 1e-30.
        subtract_quotient: (v, a, b, α, width) ↦ v - α (a - b) / width.
    """

    norm: Callable[[Mapping[str, Tensor]], Size]
    add_scaled: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Size], Params]
    ratio: Callable[[Size, Size], Size]
    subtract_quotient: Callable[[Params, Params, Params, float, Size], Params]


def _subtract_quotient(direction: Params, ahead: Params, behind: Params, inner_lr: float, width: Size) -> Params:
    quotient = {name: tensor / width for name, tensor in add_scaled(ahead, behind, -1.0).items()}
    return add_scaled(direction, quotient, -inner_lr)


ONE_MODEL = Algebra(
    norm,
    lambda params, direction, scale: add_scaled(params, direction, float(scale)),
    lambda numerator, denominator: float(numerator) / max(float(denominator), TINY),
    _subtract_quotient,
)


@dataclass(frozen=True)
class Steps(Generic[AnyBatch]):
    """The inner step of one client, or of several at once, in the forms that estimators call; all results are detached.

    Attributes:
        inner_lr: α.
        value_and_gradient: (w, O) -> f(w; O) and ∇f(w; O).
        descend: (w, I) -> w - α ∇f(w; I).
        linearize: (w, I) -> w - α ∇f(w; I), and v ↦ (I - α ∇²f(w; I)) v; what the second needs is kept.
        pull_back: (w, H, v) -> (I - α ∇²f(w; H)) v, nothing kept; v may be overwritten.
        algebra: arithmetic on parameters.
        both: (w, I) -> w - α ∇f(w; I), and a function that returns ∇f(w; I); None computes them one by the other.
        scheduled: the steps of each size, where sizes differ (nufed.common.meta.schedule); empty where all are α.
    """

    inner_lr: float
    value_and_gradient: Callable[[Mapping[str, Tensor], AnyBatch], tuple[Tensor, Params]]
    descend: Callable[[Mapping[str, Tensor], AnyBatch], Params]
    linearize: Callable[[Mapping[str, Tensor], AnyBatch], tuple[Params, PullBack]]
    pull_back: Callable[[Mapping[str, Tensor], AnyBatch, Params], Params]
    algebra: Algebra = ONE_MODEL
    both: Callable[[Mapping[str, Tensor], AnyBatch], tuple[Params, Callable[[], Params]]] | None = None
    scheduled: "tuple[Steps[AnyBatch], ...]" = ()

    def at(self, number: int) -> "Steps[AnyBatch]":
        """Return the steps of size α_j for inner step j."""
        return self.scheduled[number] if self.scheduled else self

    def descend_with_gradient(
        self, params: Mapping[str, Tensor], batch: AnyBatch
    ) -> tuple[Params, Callable[[], Params]]:
        """Return w - α ∇f(w; I), and a function that returns ∇f(w; I), from one pass over the batch."""
        if self.both is not None:
            return self.both(params, batch)
        found = self.value_and_gradient(params, batch)[1]
        return self.algebra.add_scaled(params, found, -self.inner_lr), lambda: found


@dataclass(frozen=True)
class Derivatives(Generic[AnyBatch]):
    """A loss's derivatives, of one client or of several at once, for steps of other forms; all results are detached.

    Attributes:
        value_and_gradient: (w, O) -> f(w; O) and ∇f(w; O).
        minus_product: (u, w, H, v) -> u - ∇²f(w; H) v; u may be overwritten.
        norm: v ↦ ‖v‖.
    """

    value_and_gradient: Callable[[Mapping[str, Tensor], AnyBatch], tuple[Tensor, Params]]
    minus_product: Callable[[Params, Mapping[str, Tensor], AnyBatch, Params], Params]
    norm: Callable[[Mapping[str, Tensor]], Size]


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

    return Steps(inner_lr, lambda params, batch: value_and_gradient(loss, params, batch), descend, linearize, pull_back)
