# ruff: noqa: N802, N803, N806 - capital letters are the names of the theory
"""Closed forms and reference problems that the tests measure the code against.

Equation numbers are those of docs/theory.md. Everything is float64 and seeded; nothing here is imported by the code
under test, and nothing here imports an estimator.

    quadratics    f_i(w) = 1/2 (w - c_i)' A_i (w - c_i), all meta quantities in closed form, (13) to (15)
    logistic      f(w) = mean_e log(1 + exp(-y_e x_e'w)), global L, ρ, κ, B, σ_G, σ_H in closed form
    references    the meta-gradient by autograd through the unrolled loop, and by products of full Hessians

The power `p` selects what the closed forms describe: p = 2ν the exact (and Hessian-free) estimator,
p = ν the first-order one, p = 0 FedAvg.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nufed.common.examples import Batch
from nufed.common.rng import numpy_generator

LossFn = Callable[[Mapping[str, Tensor], Batch], Tensor]


# Quadratics


def random_quadratics(n: int, d: int, eigenvalue_range: tuple[float, float], seed: int) -> tuple[Tensor, Tensor]:
    """Return A [n, d, d] symmetric with eigenvalues uniform in the range, and c [n, d] standard normal."""
    rng = numpy_generator(seed, "oracle", "quadratics")
    orthogonal = torch.linalg.qr(torch.from_numpy(rng.standard_normal((n, d, d)))).Q
    eigenvalues = torch.from_numpy(rng.uniform(*eigenvalue_range, (n, d)))
    A = orthogonal @ torch.diag_embed(eigenvalues) @ orthogonal.mT
    return (A + A.mT) / 2, torch.from_numpy(rng.standard_normal((n, d)))


def quadratic_loss(params: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return 1/2 (w - c)' A (w - c), with A [d, d] in `batch.inputs`, c [d] in `batch.targets`, w as in `flatten`."""
    error = flatten(params) - batch.targets
    return 0.5 * error @ batch.inputs @ error


def quadratic_batch(A: Tensor, c: Tensor) -> Batch:
    """Return one client's quadratic, as `quadratic_loss` reads it."""
    return Batch(A, c)


def meta_matrix(A: Tensor, alpha: float, p: int) -> Tensor:
    """Return M(p) = (I - αA)^p A, [..., d, d]; (13)."""
    return torch.linalg.matrix_power(_identity(A) - alpha * A, p) @ A


def meta_loss(A: Tensor, c: Tensor, w: Tensor, alpha: float, nu: int) -> Tensor:
    """Return F_i(w) = 1/2 (w - c_i)' M_i(2ν) (w - c_i), [...]; (13)."""
    return 0.5 * ((w - c) * _apply(meta_matrix(A, alpha, 2 * nu), w - c)).sum(-1)


def meta_gradient(A: Tensor, c: Tensor, w: Tensor, alpha: float, p: int) -> Tensor:
    """Return M_i(p)(w - c_i), [..., d]: ∇F_i for p = 2ν, the first-order estimate for p = ν; (13)."""
    return _apply(meta_matrix(A, alpha, p), w - c)


def meta_optimum(A: Tensor, c: Tensor, alpha: float, p: int) -> Tensor:
    """Return (Σ_i M_i(p))^-1 Σ_i M_i(p) c_i, [d]: w*_ν for p = 2ν, the first-order fixed point for p = ν; section 8."""
    return _weighted_mean(meta_matrix(A, alpha, p), c)


def fixed_point(A: Tensor, c: Tensor, alpha: float, beta: float, tau: int, p: int) -> Tensor:
    """Return where τ local steps, full batch and full participation come to rest, [d]; (14)."""
    Q = _identity(A) - torch.linalg.matrix_power(_identity(A) - beta * meta_matrix(A, alpha, p), tau)
    return _weighted_mean(Q, c)


def round_map(A: Tensor, c: Tensor, w: Tensor, alpha: float, beta: float, tau: int, p: int) -> Tensor:
    """Return the server model after one round from w [d], full batch and full participation; below (14)."""
    contraction = torch.linalg.matrix_power(_identity(A) - beta * meta_matrix(A, alpha, p), tau)
    return (c + _apply(contraction, w - c)).mean(0)


def max_curvature(alpha: float, nu: int) -> float:
    """Return the largest a (1 - αa)^2ν over a in [0, 1/α]; (15)."""
    p = 2 * nu
    return (p / (p + 1)) ** p / (alpha * (p + 1))


def _identity(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype)


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _weighted_mean(weights: Tensor, c: Tensor) -> Tensor:
    return torch.linalg.solve(weights.sum(0), _apply(weights, c).sum(0))


# Logistic regression


@dataclass(frozen=True)
class Logistic:
    """One client's two-class problem without regularizer, so that its gradient is bounded everywhere.

    Attributes:
        inputs: X [N, d].
        signs: y [N], -1 or +1.
    """

    inputs: Tensor
    signs: Tensor

    def as_batch(self, indices: Tensor | None = None) -> Batch:
        """Return the examples at `indices`, or all of them, as `logistic_loss` reads them."""
        if indices is None:
            return Batch(self.inputs, self.signs)
        return Batch(self.inputs[indices], self.signs[indices])

    def loss(self, w: Tensor) -> Tensor:
        """Return f(w), mean over examples."""
        return torch.nn.functional.softplus(-self.signs * (self.inputs @ w)).mean()

    def gradient(self, w: Tensor) -> Tensor:
        """Return ∇f(w), [d]."""
        return self.sample_gradients(w).mean(0)

    def sample_gradients(self, w: Tensor) -> Tensor:
        """Return the gradient of each example's loss, [N, d]."""
        return -self.inputs * (self.signs * torch.sigmoid(-self.signs * (self.inputs @ w)))[:, None]

    def hessian(self, w: Tensor) -> Tensor:
        """Return ∇²f(w), [d, d]."""
        return self.inputs.mT @ (self.inputs * self._weights(w)[:, None]) / len(self.signs)

    def gradient_variance(self, w: Tensor) -> float:
        """Return σ_G² at w: E‖∇f(w; one example) - ∇f(w)‖²."""
        gradients = self.sample_gradients(w)
        return float((gradients - gradients.mean(0)).square().sum(1).mean())

    def hessian_variance(self, w: Tensor) -> float:
        """Return σ_H² at w in Frobenius norm: E‖∇²f(w; one example) - ∇²f(w)‖²_F."""
        second_moment = (self._weights(w).square() * self.inputs.square().sum(1).square()).mean()
        return float(second_moment - self.hessian(w).square().sum())

    @property
    def L(self) -> float:
        """Return the smoothness constant: σ' <= 1/4."""
        return float(torch.linalg.eigvalsh(self.inputs.mT @ self.inputs / len(self.signs))[-1]) / 4

    @property
    def B(self) -> float:
        """Return a bound of the gradient: the mean ‖x‖."""
        return float(self._mean_norm_power(1))

    @property
    def rho(self) -> float:
        """Return a Lipschitz constant of the Hessian: |σ''| <= 1/(6 sqrt 3)."""
        return float(self._mean_norm_power(3)) / (6 * 3**0.5)

    @property
    def kappa(self) -> float:
        """Return a Lipschitz constant of the third derivative: |σ'''| <= 1/8."""
        return float(self._mean_norm_power(4)) / 8

    @property
    def sigma_g(self) -> float:
        """Return a bound of σ_G at every w: the root of the mean ‖x‖²."""
        return float(self._mean_norm_power(2)) ** 0.5

    @property
    def sigma_h(self) -> float:
        """Return a bound of σ_H at every w: the root of the mean ‖x‖⁴/16."""
        return float(self._mean_norm_power(4) / 16) ** 0.5

    def _weights(self, w: Tensor) -> Tensor:
        probability = torch.sigmoid(self.inputs @ w)
        return probability * (1 - probability)

    def _mean_norm_power(self, power: int) -> Tensor:
        return self.inputs.norm(dim=1).pow(power).mean()


def logistic_loss(params: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return mean log(1 + exp(-y x'w)), with y = ±1 in `batch.targets` [B], X [B, d] in `batch.inputs`."""
    return torch.nn.functional.softplus(-batch.targets * (batch.inputs @ flatten(params))).mean()


def logistic_federation(n: int, num_examples: int, d: int, shift: float, seed: int) -> list[Logistic]:
    """Return n problems whose separators and feature means differ by `shift` standard deviations."""
    rng = numpy_generator(seed, "oracle", "logistic")
    base = rng.standard_normal(d)
    problems = []
    for _ in range(n):
        separator = base + shift * rng.standard_normal(d)
        inputs = torch.from_numpy(rng.standard_normal((num_examples, d)) + 0.5 * shift * rng.standard_normal(d))
        chance = torch.sigmoid(inputs @ torch.from_numpy(separator))
        signs = torch.where(torch.from_numpy(rng.random(num_examples)) < chance, 1.0, -1.0).double()
        problems.append(Logistic(inputs, signs))
    return problems


# References for any twice differentiable loss


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """Return all parameters as one vector [d], in their order."""
    return torch.cat([tensor.reshape(-1) for tensor in params.values()])


def as_params(w: Tensor, *sizes: int) -> dict[str, Tensor]:
    """Return w [d] cut into tensors named `part0`, `part1`, … of the given sizes (one tensor without sizes)."""
    return {f"part{i}": part.clone() for i, part in enumerate(w.split(list(sizes) or [len(w)]))}


def unrolled_meta_gradient(
    loss: LossFn, params: Mapping[str, Tensor], inner: Sequence[Batch], outer: Batch, alpha: float
) -> dict[str, Tensor]:
    """Return the gradient of the outer loss after one inner step per batch, by autograd through the loop; (1), (2)."""
    leaves = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in params.items()}
    current: dict[str, Tensor] = dict(leaves)
    for batch in inner:
        gradients = torch.autograd.grad(loss(current, batch), list(current.values()), create_graph=True)
        current = {name: tensor - alpha * g for (name, tensor), g in zip(current.items(), gradients, strict=True)}
    result = torch.autograd.grad(loss(current, outer), list(leaves.values()))
    return {name: g.detach() for name, g in zip(leaves, result, strict=True)}


def product_meta_gradient(
    gradient: Callable[[Tensor], Tensor], hessian: Callable[[Tensor], Tensor], w: Tensor, alpha: float, nu: int
) -> Tensor:
    """Return (I - αH(w_0)) … (I - αH(w_{ν-1})) ∇f(w_ν), [d], with full Hessians; (3)."""
    path = [w]
    for _ in range(nu):
        path.append(path[-1] - alpha * gradient(path[-1]))
    v = gradient(path[nu])
    for point in reversed(path[:nu]):
        v = v - alpha * hessian(point) @ v
    return v
