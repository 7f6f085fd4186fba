"""ARUBA's sums against a loop in plain floats, through the strategy's exact mean, and the steps of their sizes."""

import math

import numpy as np
import pytest
import torch

from nufed.common.config import MethodConfig, RunConfig
from nufed.common.errors import ConfigError, WireError
from nufed.common.examples import Examples
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.meta_sgd import MOVED, SQUARED, split_step_sizes
from nufed.common.meta.objective import fine_tune, initial_params
from nufed.common.privacy.rules import check_privacy
from nufed.strategy.aggregation import RunningMean
from nufed.strategy.server_step import ServerOptimizer, next_model
from tests.common.meta.test_local_optimizer import START, quadratic

ALPHA, BETA, ZETA, TAU = 0.3, 0.2, 0.05, 3
CURVATURES, CENTRES = ([0.5, 1.5, 0.1], [1.0, 0.2, 2.0]), ([1.0, -2.0, 4.0], [0.0, 0.5, -1.0])
METHOD = MethodConfig(
    step_sizes="observed",
    observed_zeta=ZETA,
    num_inner_steps=0,
    inner_lr=ALPHA,
    num_local_steps=TAU,
    local_lr=BETA,
    batch_size=0,
)


def support(number):
    rows = (CURVATURES[number], CENTRES[number])
    return Examples(*(torch.tensor([row] * 2, dtype=torch.float64) for row in rows))


def by_hand(rounds, server_lr):
    """Return w, b and g after so many rounds of two clients."""
    w, b, g = list(START), [(ALPHA * ZETA) ** 2] * 3, [ZETA**2] * 3
    for k in range(1, rounds + 1):
        ends, steep = [], []
        for a, c in zip(CURVATURES, CENTRES, strict=True):
            own, squares = list(w), [0.0] * 3
            for _ in range(TAU):
                slopes = [a[i] * (own[i] - c[i]) for i in range(3)]
                squares = [squares[i] + slopes[i] ** 2 for i in range(3)]
                own = [own[i] - BETA * slopes[i] for i in range(3)]
            ends.append(own)
            steep.append(squares)
        for i in range(3):
            b[i] += (ALPHA * ZETA) ** 2 / (k + 1) + sum(0.5 * (w[i] - end[i]) ** 2 for end in ends) / 2
            g[i] += ZETA**2 / (k + 1) + sum(squares[i] for squares in steep) / 2
            w[i] += server_lr * (sum(end[i] for end in ends) / 2 - w[i])
    return w, b, g


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_rounds_are_those_of_the_paper_and_fine_tuning_takes_their_sizes(server_lr):
    params = initial_params({"w": torch.tensor(START, dtype=torch.float64)}, METHOD)
    optimizer = ServerOptimizer(averaged=(MOVED, SQUARED))
    assert torch.allclose(split_step_sizes(params)[1]["w"], torch.tensor(ALPHA, dtype=torch.float64))

    for number in range(1, 5):
        mean = RunningMean(params, 2)
        for who in range(2):
            mean.fold(local_update(quadratic, params, support(who), METHOD, Stream(0, f"{who}", number)).params)
        params, _ = next_model(params, mean.result(), server_lr, optimizer, {})
    *_, tuned = fine_tune(quadratic, params, [support(0).as_batch()] * 2, ALPHA, METHOD)

    w, b, g = by_hand(4, server_lr)
    for name, expected in (("w", w), (MOVED + "w", b), (SQUARED + "w", g)):
        np.testing.assert_allclose(params[name].numpy(), expected, rtol=0, atol=1e-10)
    sizes = [math.sqrt(b[i] / g[i]) for i in range(3)]
    assert max(sizes) > 1.01 * min(sizes)
    a, c = CURVATURES[0], CENTRES[0]
    expected = [c[i] + (1 - sizes[i] * a[i]) ** 2 * (w[i] - c[i]) for i in range(3)]
    np.testing.assert_allclose(tuned["w"].numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method.num-inner-steps": 2}, "set it to 0"),
        ({"evaluation.adapt-lr": 0.1}, "step-sizes=observed, whose sizes.*leave adapt-lr at 0"),
        ({"method.adapted-part": "head"}, "choose one"),
        ({"method.step-sizes": "fixed", "method.observed-zeta": 0.1}, "leave it out"),
        ({"privacy.dp": "client", "privacy.clip": 1, "privacy.noise": 1}, "sums of squares"),
        ({"privacy.dp": "record", "privacy.clip": 1, "privacy.noise": 1}, "step-sizes=fixed"),
    ],
)
def test_what_has_no_meaning_with_it_is_refused_with_the_way_out(options, said):
    observed = {"method.step-sizes": "observed", "method.num-inner-steps": 0}

    with pytest.raises(ConfigError, match=said):
        check_privacy(RunConfig.parse({**observed, **options}))


@pytest.mark.parametrize(("sums", "value"), [(MOVED, -1e-9), (SQUARED, 0.0)])
def test_sums_that_no_squares_have_are_refused_and_not_called_diverged_fine_tuning(sums, value):
    """As a client's sums with their signs flipped make them, where the rule is the mean."""
    params = initial_params({"w": torch.tensor(START)}, METHOD)
    params[sums + "w"][1] = value

    with pytest.raises(WireError, match=r"federation\.aggregation to a robust rule"):
        split_step_sizes(params)
