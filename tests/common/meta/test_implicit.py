"""iMAML's gradient against the system solved densely, the theorem it rests on, and a loop of conjugate gradients."""

import itertools

import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError
from nufed.common.examples import Examples
from nufed.common.meta.adapt import adapt
from nufed.common.meta.implicit import CG_RESIDUAL, INNER_GRADIENT, conjugate_gradients, implicit_gradient
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.meta.proximal import proximal_loss

LAMBDA, ALPHA, NU, DIM = 1.5, 0.2, 4, 4
RNG = np.random.default_rng(5)
START = torch.from_numpy(RNG.normal(size=DIM))


def batch(seed, count=9):
    rng = np.random.default_rng(seed)
    inputs = torch.from_numpy(rng.normal(size=(count, DIM)))
    return Examples(inputs, torch.from_numpy(rng.integers(0, 2, count).astype(float)))


def logistic(params, batch):
    """Return the mean logistic loss, which is strictly convex on these examples."""
    return torch.nn.functional.binary_cross_entropy_with_logits(batch.inputs @ params["w"], batch.targets)


def by_hand(w, inner, outer, nu, cg_steps=None):
    """Return iMAML's gradient at w: ν steps on the held loss, then a dense solution or so many steps by hand."""
    theta = w.clone()
    for _ in range(nu):
        x = inner.inputs
        slope = x.T @ (torch.sigmoid(x @ theta) - inner.targets) / len(inner)
        theta = theta - ALPHA * (slope + LAMBDA * (theta - w))
    right = outer.inputs.T @ (torch.sigmoid(outer.inputs @ theta) - outer.targets) / len(outer)
    curvature = hessian(lambda point: logistic({"w": point}, inner), theta)
    matrix = torch.eye(DIM, dtype=torch.float64) + curvature / LAMBDA
    if cg_steps is None:
        return torch.linalg.solve(matrix, right), theta
    return steps_of(matrix, right, cg_steps), theta


def steps_of(matrix, right, cg_steps):
    """Return what so many conjugate-gradient steps from 0 make of a system."""
    v, r = torch.zeros(DIM, dtype=torch.float64), right.clone()
    p = r.clone()
    for _ in range(cg_steps):
        step = (r @ r) / (p @ matrix @ p)
        v, after = v + step * p, r - step * (matrix @ p)
        p, r = after + (after @ after) / (r @ r) * p, after
    return v


def test_rounds_of_local_steps_are_those_of_the_paper():
    """Full batches: τ steps, each on a system solved by two conjugate-gradient steps."""
    support = batch(1)
    options = {"objective": "implicit", "personal_strength": LAMBDA, "num_inner_steps": NU, "inner_lr": ALPHA}
    method = MethodConfig(**options, cg_steps=2, num_local_steps=3, local_lr=0.4, batch_size=0)

    w = params = {"w": START}
    for number in range(2):
        update = local_update(logistic, params, support, method, Stream(0, "a", number))
        params = update.params
    w = START
    for _ in range(6):
        w = w - 0.4 * by_hand(w, support, support, NU, cg_steps=2)[0]

    np.testing.assert_allclose(params["w"].numpy(), w.numpy(), rtol=0, atol=1e-10)
    assert update.costs.hvps == 3 * 2
    assert 0 < update.measures[CG_RESIDUAL] < 0.1
    assert 0 < update.measures[INNER_GRADIENT] < 0.5


def test_all_steps_to_a_minimum_and_its_hessian_are_on_one_batch():
    """With batches of three of five examples: θ and the system are those of the batch that was drawn first."""
    support = batch(1, count=5)
    options = {"objective": "implicit", "personal_strength": LAMBDA, "num_inner_steps": NU, "inner_lr": ALPHA}
    method = MethodConfig(**options, cg_steps=2, num_local_steps=1, local_lr=1.0, batch_size=3)
    stream = Stream(0, "a", 1)

    update = local_update(logistic, {"w": START}, support, method, stream)

    subsets = [support.take(torch.tensor(rows)) for rows in itertools.combinations(range(5), 3)]
    points = {}
    for number, inner in enumerate(subsets):
        theta = by_hand(START, inner, inner, NU)[1]
        points[number] = theta
    moved = START - update.params["w"]
    found = 0
    for number, inner in enumerate(subsets):
        curvature = hessian(lambda point, on=inner: logistic({"w": point}, on), points[number])
        matrix = torch.eye(DIM, dtype=torch.float64) + curvature / LAMBDA
        for outer in subsets:
            right = outer.inputs.T @ (torch.sigmoid(outer.inputs @ points[number]) - outer.targets) / len(outer)
            found += bool(torch.allclose(steps_of(matrix, right, 2), moved, rtol=0, atol=1e-12))
    assert found == 1


def test_enough_steps_solve_the_system_and_damping_is_part_of_it():
    inner, outer = batch(2).as_batch(), batch(3).as_batch()
    batches = MetaBatches((inner,) * NU, outer, (inner,))
    solve = {"inner_lr": ALPHA, "strength": LAMBDA, "cg_steps": 50}

    found = implicit_gradient(logistic, **solve)({"w": START}, batches)
    damped = implicit_gradient(logistic, **solve, damping=1.0)({"w": START}, batches)

    expected, theta = by_hand(START, inner, outer, NU)
    np.testing.assert_allclose(found.gradient["w"].numpy(), expected.numpy(), rtol=0, atol=1e-12)
    assert found.measures[CG_RESIDUAL] < 1e-12
    assert found.costs.hvps <= DIM + 2  # none beyond the solution
    matrix = 2 * torch.eye(DIM, dtype=torch.float64) + hessian(lambda x: logistic({"w": x}, inner), theta) / LAMBDA
    system = matrix @ damped.gradient["w"]
    np.testing.assert_allclose(system.numpy(), (matrix @ torch.linalg.solve(matrix, system)).numpy(), atol=1e-12)
    assert float((system - (matrix - torch.eye(DIM)) @ expected).norm()) < 1e-10


def test_at_the_minimum_it_is_the_derivative_of_the_loss_there_and_says_so():
    """Central differences through the whole minimization, which the estimator does not differentiate."""
    inner, outer = batch(2).as_batch(), batch(3).as_batch()
    batches = MetaBatches((inner,) * 300, outer, (inner,))

    found = implicit_gradient(logistic, inner_lr=ALPHA, strength=LAMBDA, cg_steps=20)({"w": START}, batches)

    def reached(w):
        *_, point = adapt(proximal_loss(logistic, {"w": w}, LAMBDA), {"w": w}, batches.inner, ALPHA)
        return float(logistic(point, outer))

    steps = 1e-5 * torch.eye(DIM, dtype=torch.float64)
    differences = [(reached(START + step) - reached(START - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(found.gradient["w"].numpy(), differences, rtol=0, atol=1e-9)
    assert found.measures[INNER_GRADIENT] < 1e-12


def test_a_direction_without_positive_curvature_ends_the_solution():
    matrix = torch.diag(torch.tensor([-1.0, 2.0], dtype=torch.float64))
    right = {"w": torch.tensor([3.0, 0.5], dtype=torch.float64)}

    found, residual, products = conjugate_gradients(lambda v: {"w": matrix @ v["w"]}, right, 10)
    zero = conjugate_gradients(lambda v: v, {"w": torch.zeros(2)}, 10)

    assert torch.equal(found["w"], right["w"])
    assert (residual, products) == (1.0, 1)
    assert (zero[1], zero[2]) == (0.0, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "implicit"}, "personal-strength=0 contradicts objective=implicit.*set it above 0"),
        ({"objective": "implicit", "personal_strength": 1, "num_inner_steps": 0}, "set it above 0"),
        ({"objective": "implicit", "personal_strength": 1, "estimator": "first-order"}, "leave estimator at exact"),
        ({"objective": "implicit", "personal_strength": 1, "adapted_part": "head"}, "choose one"),
        ({"cg_steps": 7}, "leave them out, or choose implicit"),
        ({"objective": "moreau", "personal_strength": 1, "cg_damping": 1}, "leave them out, or choose implicit"),
    ],
)
def test_what_has_no_meaning_with_it_is_refused_with_the_way_out(options, said):
    with pytest.raises(ConfigError, match=said):
        MethodConfig(**options)
