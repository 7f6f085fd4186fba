"""Losses held to an anchor, on quadratics: what they lead to has a closed form."""

import pytest
import torch

from nufed.common.config import MethodConfig
from nufed.common.examples import Examples
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.meta.objective import build_objective, fine_tune
from nufed.common.meta.proximal import moreau_gradient, proximal_loss, proximal_pull
from nufed.common.rng import torch_generator
from tests import oracles
from tests.common.meta.problems import CountingLoss

STRENGTH, ALPHA = 0.7, 0.3


def problem(d=4):
    """Return one quadratic f(w) = 1/2 (w - c)'A(w - c) and a point."""
    a, c = oracles.random_quadratics(1, d, (0.2, 1.5), seed=3)
    return a[0], c[0], torch.linspace(-1, 2, d, dtype=torch.float64)


def proximal_point(a, c, w, strength=STRENGTH):
    """Return argmin f(x) + λ/2 ‖x - w‖² = (A + λI)^-1 (Ac + λw)."""
    return torch.linalg.solve(a + strength * torch.eye(len(c), dtype=a.dtype), a @ c + strength * w)


def batches_of(batch):
    return MetaBatches((), batch, ())


def least_squares(params, batch):
    """Return 1/2 mean_e (x_e'w - y_e)², a quadratic with A = X'X/N."""
    return 0.5 * (batch.inputs @ params["w"] - batch.targets).square().mean()


def least_squares_problem(n=12, d=3):
    generator = torch_generator(5, "test", "least squares")
    inputs = torch.randn(n, d, generator=generator, dtype=torch.float64)
    targets = torch.randn(n, generator=generator, dtype=torch.float64)
    a = inputs.T @ inputs / n
    return Examples(inputs, targets), a, torch.linalg.solve(a, inputs.T @ targets / n)


def test_the_moreau_gradient_is_that_of_the_envelope():
    """With the minimum reached it is λA(A + λI)^-1 (w - c), and a minimum of f is one of the envelope."""
    a, c, w = problem()
    estimator = moreau_gradient(oracles.quadratic_loss, inner_lr=ALPHA, num_steps=400, strength=STRENGTH)

    estimate = estimator(oracles.as_params(w), batches_of(oracles.quadratic_batch(a, c)))

    resolvent = torch.linalg.inv(a + STRENGTH * torch.eye(len(c), dtype=a.dtype))
    torch.testing.assert_close(estimate.gradient["part0"], STRENGTH * a @ resolvent @ (w - c), rtol=1e-10, atol=1e-12)
    assert estimate.growth() == pytest.approx(1.0, abs=1e-10)


def test_the_moreau_gradient_is_the_derivative_of_the_least_held_loss():
    """By central differences of min_x f(x) + λ/2 ‖x - w‖² in w."""
    a, c, w = problem()
    estimator = moreau_gradient(oracles.quadratic_loss, inner_lr=ALPHA, num_steps=400, strength=STRENGTH)

    def envelope(at):
        least = proximal_point(a, c, at)
        return 0.5 * (least - c) @ a @ (least - c) + 0.5 * STRENGTH * (least - at).square().sum()

    found = estimator(oracles.as_params(w), batches_of(oracles.quadratic_batch(a, c))).gradient["part0"]

    steps = 1e-5 * torch.eye(len(w), dtype=w.dtype)
    expected = torch.stack([(envelope(w + h) - envelope(w - h)) / 2e-5 for h in steps])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_few_steps_go_as_far_as_their_contraction_says(num_steps):
    """ŵ_K - ŵ = (I - α(A + λI))^K (w - ŵ), and the first step is a plain one: the pull is 0 at the anchor."""
    a, c, w = problem()
    estimator = moreau_gradient(oracles.quadratic_loss, inner_lr=ALPHA, num_steps=num_steps, strength=STRENGTH)

    estimate = estimator(oracles.as_params(w), batches_of(oracles.quadratic_batch(a, c)))

    identity = torch.eye(len(c), dtype=a.dtype)
    contraction = torch.linalg.matrix_power(identity - ALPHA * (a + STRENGTH * identity), num_steps)
    least = proximal_point(a, c, w)
    expected = STRENGTH * (w - least - contraction @ (w - least))
    torch.testing.assert_close(estimate.gradient["part0"], expected, rtol=1e-10, atol=1e-12)
    assert estimate.costs.gradient_evaluations == num_steps + 1
    assert estimate.costs.hvps == 0


def test_pfedme_descends_on_one_batch_in_each_local_step():
    """Its K steps are on the mini-batch of the step; no other is drawn, and the count of gradients is what is told."""
    support, _, _ = least_squares_problem()
    loss = CountingLoss(least_squares)
    method = MethodConfig(
        objective="moreau", personal_strength=STRENGTH, num_inner_steps=4, num_local_steps=3, batch_size=5
    )

    update = local_update(loss, {"w": torch.zeros(3).double()}, support, method, Stream(0, "client-0", 1))

    assert len(loss.batches) == 3
    assert loss.evaluations == update.costs.gradient_evaluations == 3 * (4 + 1)


def test_pfedme_leads_one_client_to_its_own_minimum():
    """The envelope's minimum is the loss's: w - ηλ(w - ŵ) ends there."""
    support, _, c = least_squares_problem()
    method = MethodConfig(
        objective="moreau", personal_strength=1.0, num_inner_steps=60, inner_lr=0.3, num_local_steps=300, batch_size=0
    )
    method = method.model_copy(update={"local_lr": 1.0})

    update = local_update(least_squares, {"w": torch.zeros(3).double()}, support, method, Stream(0, "client-0", 1))

    torch.testing.assert_close(update.params["w"], c, rtol=1e-8, atol=1e-8)


def test_fedprox_leads_a_client_to_the_proximal_point_of_the_servers_model():
    """Many local steps end at (A + μI)^-1 (Ac + μw_k), not at the client's own minimum."""
    support, a, c = least_squares_problem()
    server = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    method = MethodConfig(
        num_inner_steps=0, proximal_strength=STRENGTH, local_lr=0.3, num_local_steps=400, batch_size=0
    )

    update = local_update(least_squares, {"w": server}, support, method, Stream(0, "client-0", 1))

    torch.testing.assert_close(update.params["w"], proximal_point(a, c, server), rtol=1e-9, atol=1e-10)
    assert not torch.allclose(update.params["w"], c, rtol=1e-2)


def test_fedproxs_pull_is_to_the_servers_model_and_not_to_the_last_step():
    """Two steps by hand: w_1 = w_0 - β∇f(w_0), w_2 = w_1 - β(∇f(w_1) + μ(w_1 - w_0))."""
    support, a, c = least_squares_problem()
    start, beta = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), 0.3
    method = MethodConfig(num_inner_steps=0, proximal_strength=STRENGTH, local_lr=beta, num_local_steps=2, batch_size=0)

    update = local_update(least_squares, {"w": start}, support, method, Stream(0, "client-0", 1))

    first = start - beta * a @ (start - c)
    second = first - beta * (a @ (first - c) + STRENGTH * (first - start))
    torch.testing.assert_close(update.params["w"], second, rtol=1e-12, atol=1e-12)


def test_dittos_personal_model_is_held_to_the_servers():
    """Fine-tuning ends at (A + λI)^-1 (Ac + λw), Ditto's personal optimum; the server's model does not move."""
    a, c, w = problem()
    params, method = oracles.as_params(w), MethodConfig(num_inner_steps=0, personal_strength=STRENGTH)

    points = list(fine_tune(oracles.quadratic_loss, params, [oracles.quadratic_batch(a, c)] * 300, ALPHA, method))

    torch.testing.assert_close(points[0]["part0"], w, rtol=0, atol=0)
    torch.testing.assert_close(points[1]["part0"], w - ALPHA * a @ (w - c), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(points[-1]["part0"], proximal_point(a, c, w), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("strength", "expected"), [(1e-9, "client"), (1e4, "server")])
def test_ditto_lies_between_local_training_and_the_servers_model(strength, expected):
    a, c, w = problem()
    method = MethodConfig(num_inner_steps=0, personal_strength=strength)
    step_size = 1 / (1.5 + strength)

    *_, last = fine_tune(
        oracles.quadratic_loss, oracles.as_params(w), [oracles.quadratic_batch(a, c)] * 400, step_size, method
    )

    torch.testing.assert_close(last["part0"], {"client": c, "server": w}[expected], rtol=1e-3, atol=1e-3)


def test_the_held_loss_is_the_loss_and_half_the_strength_times_the_squared_distance():
    a, c, w = problem()
    anchor = w + 1
    batch = oracles.quadratic_batch(a, c)

    held = proximal_loss(oracles.quadratic_loss, oracles.as_params(anchor, 3, 1), STRENGTH)(
        oracles.as_params(w, 3, 1), batch
    )

    plain = oracles.quadratic_loss(oracles.as_params(w), batch)
    torch.testing.assert_close(held, plain + 0.5 * STRENGTH * 4)
    pull = proximal_pull(oracles.as_params(w, 3, 1), oracles.as_params(anchor, 3, 1), STRENGTH)
    torch.testing.assert_close(oracles.flatten(pull), torch.full_like(w, -STRENGTH))


def test_the_default_objective_is_the_estimators_and_its_direction_untouched():
    """Without the options of other methods nothing is added, not even zeros."""
    method = MethodConfig()

    objective = build_objective(least_squares, method)

    assert (objective.plan.num_inner, objective.plan.num_hessian) == (3, 3)
