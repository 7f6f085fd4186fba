"""Server optimizers against loops written from the papers, and what they remember from round to round."""

import json
import math

import numpy as np
import pytest
import torch

from nufed.common.config import RunConfig
from nufed.common.config.federation import FederationConfig
from nufed.common.errors import ConfigError, DivergedError, RunError
from nufed.common.privacy.terms import ClientTerms
from nufed.deploy.simulation.engines import simulate
from nufed.server.checkpoint import load_checkpoint
from nufed.server.options import ServerOptions
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.private_rounds import ClientPrivacy
from nufed.strategy.secure_phase import SecureAggregation
from nufed.strategy.server_step import SERVER_OPTIMIZERS, ServerOptimizer, configured_optimizer, next_model
from tests.deploy.simulation.secure_federation import config_of, one_round, same
from tests.strategy.fake_grid import FakeGrid, client, received, reply

ETA, BETA1, BETA2, TAU, STEPS, LOCAL = 0.3, 0.9, 0.99, 1e-3, 3, 0.2
CURVATURES, CENTRES = ([0.5, 1.0], [1.5, 0.3], [0.8, 2.0]), ([1.0, -2.0], [0.5, 3.0], [-1.5, 0.25])


def descended(w, number):
    """Return a client's model after τ full-batch steps on Σ a (w - c)² / 2, in plain floats."""
    for _ in range(STEPS):
        w = [x - LOCAL * a * (x - c) for x, a, c in zip(w, CURVATURES[number], CENTRES[number], strict=True)]
    return w


def by_hand(name, rounds):
    """Return w_K by Algorithm 2 of Reddi et al. (2021), FedAvgM of Hsu et al. (2019), or Adam, in plain floats."""
    w, m, v = [3.0, -1.0], [0.0, 0.0], [TAU**2, TAU**2]
    for t in range(1, rounds + 1):
        ends = [descended(w, number) for number in range(3)]
        for i in range(2):
            delta = sum(end[i] for end in ends) / 3 - w[i]
            if name == "momentum":
                m[i] = BETA1 * m[i] + delta
                w[i] += ETA * m[i]
                continue
            m[i] = delta if name == "adagrad" else BETA1 * m[i] + (1 - BETA1) * delta
            if name == "adagrad":
                v[i] += delta**2
            elif name == "yogi":
                v[i] -= (1 - BETA2) * delta**2 * math.copysign(1.0, v[i] - delta**2)
            elif name == "adam":
                v[i] = BETA2 * v[i] + (1 - BETA2) * delta**2
            else:  # Kingma and Ba (2015), Algorithm 1
                v[i] = (0 if t == 1 else v[i]) * BETA2 + (1 - BETA2) * delta**2
                corrected = m[i] / (1 - BETA1**t), v[i] / (1 - BETA2**t)
                w[i] += ETA * corrected[0] / (math.sqrt(corrected[1]) + TAU)
                continue
            w[i] += ETA * m[i] / (math.sqrt(v[i]) + TAU)
    return w


def federation(dtype=np.float64):
    def trains(number):
        def answer(message):
            w = np.array(descended(received(message)["w"].tolist(), number), dtype)
            return reply(message, {"w": w}, {"num-examples": 1, "loss": 1.0})

        return client(f"c{number}", train=answer)

    return FakeGrid({100 + number: trains(number) for number in range(3)})


def strategy(optimizer, **options):
    return MetaFedAvg(participation_fraction=1.0, server_lr=ETA, server_optimizer=optimizer, **options)


def trained(served, params, rounds):
    for number in rounds:
        params = served.train_round(federation(), params, number, timeout=5).params
    return params


START = {"w": torch.tensor([3.0, -1.0], dtype=torch.float64)}
OPTIMIZERS = {
    **{name: ServerOptimizer(name) for name in ("momentum", "adam", "yogi", "adagrad")},
    "corrected-adam": ServerOptimizer("adam", bias_correction=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_the_papers_and_goes_on_where_its_state_was_kept(name):
    whole, first, second = (strategy(OPTIMIZERS[name]) for _ in range(3))

    end = trained(whole, START, range(1, 8))
    middle = trained(first, START, range(1, 4))
    second.server_state = first.server_state
    resumed = trained(second, middle, range(4, 8))

    np.testing.assert_allclose(end["w"].numpy(), by_hand(name, 7), rtol=0, atol=1e-10)
    assert torch.equal(resumed["w"], end["w"])
    assert same(whole.server_state, second.server_state)


def test_names_are_those_that_the_options_take():
    assert list(SERVER_OPTIMIZERS) == list(FederationConfig.model_fields["server_optimizer"].annotation.__args__)
    assert configured_optimizer(FederationConfig()) == ServerOptimizer()
    assert strategy("yogi").server_optimizer == ServerOptimizer("yogi")


@pytest.mark.parametrize("name", [name for name in SERVER_OPTIMIZERS if name != "sgd"])
def test_counters_and_running_statistics_take_the_mean(name):
    names = ("w", "bn.running_var", "bn.num_batches_tracked", "seen/w")
    sent = {key: torch.ones(2, dtype=torch.int64 if "tracked" in key else torch.float32) for key in names}
    mean = {key: 3 * tensor for key, tensor in sent.items()}

    moved, state = next_model(sent, mean, 0.25, ServerOptimizer(name, averaged=("seen/",)), {})

    assert {key for key in names if torch.equal(moved[key], mean[key])} == set(names) - {"w"}
    assert {key.partition("/")[2] for key in state} == {"w"}


def test_the_state_of_another_model_and_a_step_out_of_range_are_refused():
    optimizer = ServerOptimizer("momentum")
    _, state = next_model(START, {"w": START["w"] / 2}, ETA, optimizer, {})

    with pytest.raises(RunError, match=r"'exp_avg/w' does not fit.*empty state"):
        next_model(START, START, ETA, ServerOptimizer("adam"), state)
    with pytest.raises(RunError, match="momentum_buffer/w"):
        next_model({"w": torch.zeros(3)}, {"w": torch.zeros(3)}, ETA, optimizer, state)
    with pytest.raises(DivergedError, match=r"Lower federation\.server-lr"):
        next_model({"w": torch.tensor([-3e38])}, {"w": torch.tensor([3e38])}, 2.0, optimizer, {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "sdg"}, "Did you mean 'sgd'"),
        ({"name": "momentum", "momentum": 1.0}, "at least 0, below 1"),
        ({"name": "adam", "beta2": math.nan}, "beta2=nan"),
        ({"name": "adam", "eps": 0.0}, "above 0"),
        ({"name": "yogi", "bias_correction": True}, "adam's alone"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        ServerOptimizer(**options)


@pytest.mark.parametrize("option", ["momentum=0.5", "beta1=0.5", "beta2=0.5", "eps=0.1", "bias-correction=true"])
def test_options_of_another_optimizer_are_refused_with_the_way_out(option):
    key, _, value = option.partition("=")

    with pytest.raises(
        ConfigError, match=rf"server-{key}.*no meaning with server-optimizer=sgd; leave it out, or choose"
    ):
        RunConfig.parse({f"federation.server-{key}": json.loads(value)})


def test_rounds_without_replies_leave_the_state_and_private_ones_step_on_their_noise(monkeypatch):
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "fixed")
    silent = FakeGrid({100: client("a", train=lambda _: None)})
    plain = strategy("adam")
    terms = ClientTerms(clip=1.0, noise=1.0, rate=1.0, num_clients=1, cohort_cap=0, delta=1e-3)
    private = strategy("adam", privacy=ClientPrivacy(terms))

    unmoved = plain.train_round(silent, START, 1, timeout=1).params
    noised = private.train_round(silent, START, 1, timeout=1).params

    assert unmoved is START or torch.equal(unmoved["w"], START["w"])
    assert plain.server_state == {}
    assert not torch.equal(noised["w"], START["w"])
    assert set(private.server_state) == {"exp_avg/w", "exp_avg_sq/w"}


def test_masked_and_robust_means_are_stepped_alike():
    config = config_of()

    plain, masked = (
        one_round(config, secure=how is not None, strategy=strategy("yogi", seed=config.seed, secure=how))
        for how in (None, SecureAggregation(config.privacy.secure_threshold, config.privacy.secure_neighbours))
    )
    robust = strategy("adam", aggregation="median").train_round(federation(), START, 1, timeout=5).params["w"]

    assert masked.secure.summed == plain.counts.replied > 0
    assert same(masked.params, plain.params)
    assert same(masked.server_state, plain.server_state)
    delta = np.median([descended([3.0, -1.0], number) for number in range(3)], axis=0) - START["w"].numpy()
    second = BETA2 * TAU**2 + (1 - BETA2) * delta**2
    np.testing.assert_allclose(
        robust.numpy() - START["w"].numpy(), ETA * 0.1 * delta / (np.sqrt(second) + TAU), atol=1e-9
    )


def test_a_run_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    changes = {"data.num-clients": 4, "data.num-new-clients": 0, "model.hidden-sizes": "6", "evaluation.interval": 0}
    options = {
        **changes,
        "federation.server-optimizer": "adagrad",
        "federation.server-lr": 0.1,
        "federation.num-rounds": 4,
    }
    config = RunConfig.parse(options)

    def conducted(out, rounds, resume=None):
        running = config.replace(federation__num_rounds=rounds)
        simulate(running, ServerOptions(out=out, resume=resume), engine="local")
        return resume or next(iter(out.iterdir()))

    whole = load_checkpoint(conducted(tmp_path / "whole", 4))
    halves = conducted(tmp_path / "halves", 2)
    conducted(tmp_path / "halves", 4, resume=halves)
    resumed = load_checkpoint(halves)

    assert whole.server_state
    assert same(resumed.params, whole.params)
    assert same(resumed.server_state, whole.server_state)
    assert whole.round == resumed.round == 4
