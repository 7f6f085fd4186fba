"""Momentum and Adam in the clients' meta steps, against loops in plain floats, and many clients at once."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError
from nufed.common.examples import Examples
from nufed.common.meta.cohort import cohort_update
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.params import model_params
from nufed.common.task import make_loss
from tests.common.meta.problems import mlp, relative_difference
from tests.common.meta.test_cohort import BATCHED, METHOD, TASK, alone, assert_same_updates, dense, trainees

CURVATURES, CENTRES, START = [0.5, 1.5, 0.1], [1.0, -2.0, 4.0], [2.0, 0.5, -1.0]
ALPHA, BETA, NU, TAU, MU = 0.2, 0.05, 2, 6, 0.3
SUPPORT = Examples(
    torch.tensor([CURVATURES] * 2, dtype=torch.float64), torch.tensor([CENTRES] * 2, dtype=torch.float64)
)
POWER = {"exact": 2 * NU, "unrolled": 2 * NU, "hessian-free": 2 * NU, "first-order": NU}


def quadratic(params, batch):
    """Return the mean of Σ a (w - c)² / 2, whose curvatures are the inputs and whose centres are the targets."""
    return 0.5 * (batch.inputs * (params["w"] - batch.targets).square()).sum(1).mean()


def by_hand(optimizer, estimator, longest):
    """Return a client's model: Kingma and Ba (2015), Algorithm 1, or heavy-ball momentum, on FedProx's directions."""
    w, m, v = list(START), [0.0] * 3, [0.0] * 3
    for t in range(1, TAU + 1):
        g = [(1 - ALPHA * a) ** POWER[estimator] * a * (x - c) for x, a, c in zip(w, CURVATURES, CENTRES, strict=True)]
        g = [each + MU * (x - x0) for each, x, x0 in zip(g, w, START, strict=True)]
        length = math.sqrt(sum(each**2 for each in g))
        g = [each * min(1.0, longest / length) for each in g]
        for i in range(3):
            if optimizer == "momentum":
                m[i] = 0.9 * m[i] + g[i]
                w[i] -= BETA * m[i]
            else:
                m[i] = 0.9 * m[i] + 0.1 * g[i]
                v[i] = 0.999 * v[i] + 0.001 * g[i] ** 2
                w[i] -= BETA * (m[i] / (1 - 0.9**t)) / (math.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
    return w


@pytest.mark.parametrize("estimator", POWER)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_client_steps_as_the_papers_do_with_pull_and_clipping(optimizer, estimator):
    method = MethodConfig(
        num_inner_steps=NU,
        inner_lr=ALPHA,
        estimator=estimator,
        num_local_steps=TAU,
        local_lr=BETA,
        local_optimizer=optimizer,
        proximal_strength=MU,
        max_grad_norm=0.5,
        batch_size=0,
        hessian_free_delta=0.1,  # a quadratic's differences are exact; a larger one rounds less
    )
    start = {"w": torch.tensor(START, dtype=torch.float64)}

    rounds = [local_update(quadratic, start, SUPPORT, method, Stream(0, "a", number)) for number in (1, 2)]

    np.testing.assert_allclose(rounds[0].params["w"].numpy(), by_hand(optimizer, estimator, 0.5), rtol=0, atol=1e-10)
    assert torch.equal(rounds[0].params["w"], rounds[1].params["w"])  # a round begins without moments


@pytest.mark.parametrize("estimator", BATCHED)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_many_clients_at_once_step_as_each_alone(optimizer, estimator):
    model = mlp(nn.ELU)
    clients = trainees(model_params(model))
    changes = {"estimator": estimator, "local_optimizer": optimizer, "max_grad_norm": 0.5, "local_lr": 0.02}
    method = METHOD.model_copy(update=changes)

    together = cohort_update(dense(model), clients, method)

    assert_same_updates(together, alone(make_loss(model, TASK), clients, method), 1e-9)
    plain = cohort_update(dense(model), clients, method.model_copy(update={"local_optimizer": "sgd"}))
    assert relative_difference(together[0].params, plain[0].params) > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"local_momentum": 0.5}, "local-momentum=0.5 has no meaning with local-optimizer=sgd.*choose momentum"),
        ({"local_optimizer": "momentum", "local_beta2": 0.9}, "local-beta2=0.9 has no meaning.*choose adam"),
        ({"local_optimizer": "yogi"}, "'sgd', 'momentum' or 'adam'"),
    ],
)
def test_options_of_another_optimizer_are_refused_with_the_way_out(options, said):
    with pytest.raises(ConfigError, match=said):
        MethodConfig(**options)
