"""iMAML: the meta-gradient of a minimum, by the implicit function theorem instead of the path to it.

Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019 (equations 3 and 6,
Algorithm 2). The adapted model is θ(w) = argmin_x f(x; I) + λ/2 ‖x - w‖², and the gradient of f(θ(w); O) is

    (I + ∇²f(θ) / λ)^-1 ∇f(θ; O),

solved by conjugate gradients, which need products with the Hessian alone. Memory does not grow with ν.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from nufed.common.meta.adapt import adapt
from nufed.common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from nufed.common.meta.proximal import proximal_loss, proximal_pull
from nufed.common.params import Params, add_scaled, norm
from nufed.common.steps.differentiate import gradient, hessian_vector_product, value_and_gradient
from nufed.common.task import LossFn

CG_RESIDUAL, INNER_GRADIENT = "cg-residual", "inner-gradient"

_SOLVED = 1e-14
"""Residual, as a share of the right-hand side, at which further steps would divide rounding by rounding."""


def implicit_gradient(
    loss: LossFn,
    *,
    inner_lr: float | Sequence[float],
    strength: float,
    cg_steps: int,
    damping: float = 0.0,
) -> MetaGradient:
    """Return the estimator, which finds θ in one step of size α on each inner batch.

    The Hessian is that of the last batch of `batches.hessian`, one for all products of a solution. Two measures of the
    estimate tell how good it is: `cg-residual` is ‖A v - g‖ / ‖g‖ of the system A v = g that was solved, and
    `inner-gradient` ‖∇f(θ) + λ (θ - w)‖ / max(‖∇f(θ)‖, λ ‖θ - w‖) on that batch, 0 where θ is the minimum. Where A has
    no positive curvature along a direction (λ is below the curvature of a maximum), the solution ends there.

    Args:
        loss: the client's loss.
        inner_lr: α, or a size for each step.
        strength: λ, above 0.
        cg_steps: conjugate-gradient steps, at least 1; none is taken beyond the solution.
        damping: δ in A = (1 + δ) I + ∇²f(θ) / λ.
    """

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches) -> Estimate:
        held = proximal_loss(loss, params, strength)
        point = deque(adapt(held, params, batches.inner, inner_lr), maxlen=1).pop()
        outer_loss, outer_gradient = value_and_gradient(loss, point, batches.outer)
        batch = batches.hessian[-1]

        def product(direction: Params) -> Params:
            own = {name: (1 + damping) * tensor for name, tensor in direction.items()}
            return add_scaled(own, hessian_vector_product(loss, point, direction, batch), 1 / strength)

        solution, residual, num_products = conjugate_gradients(product, outer_gradient, cg_steps)
        pull, slope = proximal_pull(point, params, strength), gradient(loss, point, batch)
        largest = max(norm(slope), norm(pull))
        measures = {
            CG_RESIDUAL: residual,
            INNER_GRADIENT: norm(add_scaled(slope, pull, 1.0)) / largest if largest > 0 else 0.0,
        }
        costs = Costs(len(batches.inner) + 2, num_products)
        return Estimate(solution, outer_loss, norm(outer_gradient), costs, measures)

    return meta_gradient


def conjugate_gradients(
    product: Callable[[Params], Params], right: Params, num_steps: int
) -> tuple[Params, float, int]:
    """Return v with A v ≈ g after at most so many steps from 0, ‖A v - g‖ / ‖g‖, and the number of products.

    Hestenes and Stiefel 1952. A direction p with pᵀ A p ≤ 0 ends it; if it is the first, v is g.

    Args:
        product: v ↦ A v, symmetric.
        right: g.
        num_steps: most steps, at least 1.
    """
    wanted = _dot(right, right)
    if not wanted > 0:
        return right, 0.0, 0
    solution = {name: tensor * 0 for name, tensor in right.items()}
    residual = direction = right
    left, done = wanted, 0
    while done < num_steps and left > _SOLVED**2 * wanted:
        moved = product(direction)
        done += 1
        curvature = _dot(direction, moved)
        if not curvature > 0:
            return (right if done == 1 else solution), (left / wanted) ** 0.5, done
        step = left / curvature
        solution, residual = add_scaled(solution, direction, step), add_scaled(residual, moved, -step)
        before, left = left, _dot(residual, residual)
        direction = add_scaled(residual, direction, left / before)
    return solution, (left / wanted) ** 0.5, done


def _dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    return float(sum((tensor.double() * right[name].double()).sum() for name, tensor in left.items()))
