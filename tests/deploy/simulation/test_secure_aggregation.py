"""With secure aggregation a round ends with the same bytes as without, whoever is lost and whenever."""

import json

import pytest
import torch

from nufed.client.secure_aggregation import refuse_in_the_clear
from nufed.common.errors import ConfigError, WireError
from nufed.common.privacy.terms import ClientTerms
from nufed.deploy.simulation.engines import simulate
from nufed.server.app import build_server_app
from nufed.server.options import ServerOptions
from nufed.server.run_folder import load_model
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.private_rounds import ClientPrivacy
from nufed.strategy.secure_phase import SecureAggregation
from tests.deploy.simulation.secure_federation import (
    BEFORE_THE_SUM,
    STAGES,
    FailingGrid,
    config_of,
    initial,
    one_round,
    same,
    strategy_of,
)


@pytest.mark.parametrize("lost", [(2,), (0, 5)], ids=["one", "two"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_model_has_the_bytes_of_the_mean_over_the_same_clients(stage, lost):
    """Clients lost before their model came are left out; those lost afterwards are in the sum all the same."""
    config = config_of()
    left_out = lost if stage in BEFORE_THE_SUM else ()

    plain = one_round(config, secure=False, failing={"train": left_out})
    masked = one_round(config, secure=True, failing={stage: lost})

    assert same(masked.params, plain.params)
    assert masked.counts == plain.counts
    assert masked.secure.dropped == {stage: len(lost)}
    assert masked.secure.summed == masked.counts.replied == 7 - len(left_out)
    assert masked.problems.keys() == plain.problems.keys()
    assert len(masked.secure.late) == len(lost) - len(left_out)


@pytest.mark.parametrize(
    "options",
    [
        {"model.name": "cnn"},
        {"federation.weighting": "examples", "data.partition": "dirichlet"},
        {"federation.server-lr": 0.3},
        {"privacy.secure-neighbours": 6, "data.num-clients": 9},
    ],
    ids=["cnn", "by-examples", "server-lr", "neighbours"],
)
def test_models_weights_and_steps_of_other_kinds_have_the_same_bytes_too(options):
    config = config_of(**options)

    masked, plain = one_round(config, secure=True), one_round(config, secure=False)

    assert masked.counts.replied == config.data.num_clients
    assert same(masked.params, plain.params)
    assert not same(masked.params, initial(config))
    assert masked.client_metrics.keys() == plain.client_metrics.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_a_round_leaves_the_model_and_says_why(stage):
    config = config_of()

    result = one_round(config, secure=True, failing={stage: (0, 1, 2)})

    assert same(result.params, initial(config))
    assert result.secure.summed == result.counts.replied == 0
    assert "Expected 5 of 7 clients, got 4" in result.secure.reason
    assert result.counts.sampled == result.counts.rejected + result.counts.failed == 7
    assert all("secure" in reason or "killed" in reason for reason in result.problems.values())
    assert result.client_metrics == {}


def test_rounds_of_two_clients_end_without_a_sum():
    config = config_of(**{"data.num-clients": 2})

    result = one_round(config, secure=True)

    assert "at least 3 clients" in result.secure.reason
    assert same(result.params, initial(config))


def test_client_level_privacy_sums_what_clients_clipped_and_the_server_adds_the_noise(monkeypatch):
    """With one key of the noise, the model has the same bytes whether the server or the clients clip."""
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "a key of this test")
    config = config_of(**{"federation.participation-fraction": 0.9, "data.num-clients": 10})
    terms = ClientTerms(clip=0.05, noise=0.5, rate=0.9, num_clients=10, cohort_cap=0, delta=0.01)

    def private_round(secure):
        how = SecureAggregation() if secure else None
        strategy = MetaFedAvg(participation_fraction=0.9, privacy=ClientPrivacy(terms), secure=how)
        return one_round(config, secure=secure, strategy=strategy)

    masked, plain = private_round(True), private_round(False)

    assert masked.secure.summed == masked.counts.replied == plain.counts.replied >= 3
    assert same(masked.params, plain.params)
    assert masked.privacy == plain.privacy


def test_a_private_round_without_a_sum_is_noise_alone_and_is_charged():
    config = config_of(**{"data.num-clients": 2})
    terms = ClientTerms(clip=0.05, noise=0.5, rate=1.0, num_clients=2, cohort_cap=0, delta=0.01)
    strategy = MetaFedAvg(participation_fraction=1.0, privacy=ClientPrivacy(terms), secure=SecureAggregation())

    result = one_round(config, secure=True, strategy=strategy)

    moved = torch.cat([(result.params[name] - before).flatten() for name, before in initial(config).items()])
    assert "noise alone" in next(iter(result.problems.values()))
    assert float(moved.std()) == pytest.approx(0.5 * 0.05 / 2, rel=0.1)
    assert [charge.round for charge in strategy.private.ledger.charges] == [1]


@pytest.mark.parametrize("engine", ["local", "processes"])
def test_every_engine_leaves_the_bytes_of_a_run_without(engine, tmp_path):
    """With `processes` the messages of one client reach different ones."""
    config = config_of(**{"federation.num-rounds": 2, "data.num-clients": 4})

    def model_of(name, secure, engine):
        changed = config.updated({"privacy.secure-aggregation": secure})
        simulate(changed, ServerOptions(out=tmp_path / name), engine=engine)
        (folder,) = (tmp_path / name).iterdir()
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return load_model(folder)[0], [each.get("secure_aggregation") for each in records]

    masked, secure = model_of("masked", True, engine)
    plain, nothing = model_of("plain", False, "local")

    assert same(masked, plain)
    assert [each["summed"] for each in secure] == [4, 4]
    assert nothing == [None, None]


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_run_that_was_cut_short_in_mid_protocol_goes_on_to_the_same_bytes(stage, tmp_path):
    """The round is done again with fresh keys; nothing of a round is kept that is not over."""
    config = config_of(**{"federation.num-rounds": 2, "data.num-clients": 3, "privacy.secure-aggregation": True})

    def cut_short(message):
        if message.metadata.message_type.endswith(stage) and message.metadata.group_id == "2":
            raise KeyboardInterrupt
        return message

    def run(options, hook=None):
        grid = FailingGrid(config, hook=hook)
        build_server_app(options)(grid=grid, context=grid.server_context())

    run(ServerOptions(out=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(ServerOptions(out=tmp_path / "cut"), cut_short)
    (whole,), (cut,) = (tmp_path / "whole").iterdir(), (tmp_path / "cut").iterdir()
    run(ServerOptions(out=tmp_path / "cut", resume=cut))

    assert same(load_model(cut)[0], load_model(whole)[0])
    records = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert [each["secure_aggregation"]["summed"] for each in records] == [3, 3]


def test_a_client_that_requires_it_refuses_a_run_without_and_a_message_that_asks_for_its_model():
    """And no client of a run with it sends its model when a server asks for that after all."""
    secure = config_of(**{"privacy.secure-aggregation": True})
    requires = {"require-secure-aggregation": True}

    with pytest.raises(ConfigError, match="with secure aggregation alone"):
        refuse_in_the_clear(config_of(), requires)
    refuse_in_the_clear(secure, requires)
    grid = FailingGrid(secure)
    strategy = strategy_of(secure, secure=False)  # a server that does not keep to the run's options
    strategy.discover(grid, expected=7, timeout=5)
    with pytest.raises(WireError, match="it is not sent"):
        strategy.train_round(grid, initial(secure), 1, timeout=60)
