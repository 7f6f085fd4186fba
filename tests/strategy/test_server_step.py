"""The server's step towards the mean: w_{k+1} = w_k + ε (mean - w_k)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.errors import ConfigError, ModelError
from nufed.common.params import add_scaled
from nufed.common.steps.differentiate import gradient
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.server_step import ServerOptimizer, next_model
from tests import oracles
from tests.strategy.fake_grid import FakeGrid, client

BETA, LOCAL_STEPS = 0.2, 3


def plain_step(sent, mean, server_lr):
    """Return w_k + ε (mean - w_k)."""
    return next_model(sent, mean, server_lr, ServerOptimizer(), {})[0]


def reptile_map(quadratics, w):
    """Return the mean of the clients' models after τ plain steps from w."""
    ends = []
    for a, c in zip(*quadratics, strict=True):
        point, batch = oracles.as_params(w), oracles.quadratic_batch(a, c)
        for _ in range(LOCAL_STEPS):
            point = add_scaled(point, gradient(oracles.quadratic_loss, point, batch), -BETA)
        ends.append(point["part0"])
    return {"part0": torch.stack(ends).mean(0)}


def fixed_point(quadratics):
    """Return the w* with mean_i (I - βA_i)^τ (w* - c_i) = mean_i (w* - c_i)."""
    a, c = quadratics
    moved = torch.eye(a.shape[1], dtype=a.dtype) - torch.linalg.matrix_power(
        torch.eye(a.shape[1], dtype=a.dtype) - BETA * a, LOCAL_STEPS
    )
    return torch.linalg.solve(moved.mean(0), (moved @ c.unsqueeze(2)).mean(0).squeeze(1))


@pytest.mark.parametrize("server_lr", [0.3, 1.0])
def test_reptile_ends_where_the_clients_steps_cancel_whatever_its_step(server_lr):
    quadratics = oracles.random_quadratics(5, 3, (0.3, 1.5), seed=2)
    params = oracles.as_params(torch.ones(3, dtype=torch.float64))

    for _ in range(400):
        params = plain_step(params, reptile_map(quadratics, params["part0"]), server_lr)

    torch.testing.assert_close(params["part0"], fixed_point(quadratics), rtol=1e-10, atol=1e-12)


def test_a_step_of_one_is_the_mean_itself():
    mean = {"w": torch.tensor([0.1, 1e-30, -3.0])}

    assert plain_step({"w": torch.tensor([1e10, 7.0, 2.0])}, mean, 1.0) is mean


@given(sent=st.floats(-1e3, 1e3, width=32), mean=st.floats(-1e3, 1e3, width=32), server_lr=st.floats(0.001, 0.999))
def test_a_shorter_step_lies_between_the_model_and_the_mean(sent, mean, server_lr):
    moved = float(plain_step({"w": torch.tensor([sent])}, {"w": torch.tensor([mean])}, server_lr)["w"])

    assert min(sent, mean) <= moved <= max(sent, mean)
    assert moved == pytest.approx(sent + server_lr * (mean - sent), rel=1e-6, abs=1e-6)


def test_the_strategy_takes_the_step():
    sent = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(0.5)}

    def trained(server_lr):
        grid = FakeGrid({100 + i: client(f"c{i}", step=1 / (i + 3)) for i in range(4)})
        strategy = MetaFedAvg(participation_fraction=1.0, server_lr=server_lr)
        return strategy.train_round(grid, sent, 1, timeout=5).params

    whole, half = trained(1.0), trained(0.5)

    for name, tensor in sent.items():
        torch.testing.assert_close(half[name], (tensor + whole[name]) / 2)
        assert not torch.equal(half[name], whole[name])


def test_integer_arrays_stay_integers():
    moved = plain_step({"n": torch.tensor([0, 10])}, {"n": torch.tensor([5, 10])}, 0.5)["n"]

    assert moved.dtype == torch.int64
    assert moved.tolist() in ([2, 10], [3, 10])


def test_a_step_out_of_range_is_refused_naming_the_option():
    with pytest.raises(ModelError, match=r"server step of size 100 .*'w'.* Lower federation\.server-lr"):
        plain_step({"w": torch.tensor([-3e38])}, {"w": torch.tensor([3e38])}, 100.0)


@pytest.mark.parametrize("size", [0.0, -1.0, 101.0, float("nan")])
def test_step_sizes_out_of_range_are_refused(size):
    with pytest.raises(ConfigError, match="server_lr"):
        MetaFedAvg(server_lr=size)
