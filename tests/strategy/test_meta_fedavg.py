import copy

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

from nufed.common.errors import ConfigError, ModelError, RunError
from nufed.common.model_arrays import arrays_to_params, params_to_arrays
from nufed.strategy import MetaFedAvg
from nufed.strategy.participation import choose
from tests.strategy.fake_grid import FakeGrid, StreamingGrid, client, error_reply, received, reply

SENT = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(0.5)}


def federation(grid_class=FakeGrid, order=list, num_clients=10, num_new=2):
    """Return a grid of clients whose steps and numbers of examples all differ."""
    nodes = {100 + i: client(f"c{i}", step=1 / (i + 3), num_examples=i + 1) for i in range(num_clients)}
    nodes |= {900 + i: client(f"new{i}", group="new", step=1e3) for i in range(num_new)}
    return grid_class(nodes, order)


def trained(grid, num_rounds=3, **options):
    """Return the result of a few rounds."""
    return MetaFedAvg(**options).start(grid, params_to_arrays(SENT), num_rounds, timeout=5)


def content(arrays):
    return {name: array.data for name, array in arrays.items()}


def test_a_round_averages_the_chosen_clients_uniformly():
    grid, strategy = federation(), MetaFedAvg(seed=4, participation_fraction=0.3)

    result = strategy.train_round(grid, SENT, 7, timeout=5)

    chosen = choose([f"c{i}" for i in range(10)], 0.3, seed=4, round=7)
    steps = [1 / (int(name[1:]) + 3) for name in chosen]
    assert sorted(result.client_metrics) == list(chosen)
    assert vars(result.counts) == {"sampled": 3, "replied": 3, "rejected": 0, "failed": 0, "missing": 0, "dropped": 0}
    torch.testing.assert_close(result.params["w"], SENT["w"] + sum(steps) / 3)
    assert result.mean_metrics["loss"] == pytest.approx(sum(steps) / 3)
    assert result.round == 7


def test_a_round_averages_by_examples_where_asked():
    grid, strategy = federation(num_clients=4), MetaFedAvg(participation_fraction=1.0, weighting="examples")

    result = strategy.train_round(grid, SENT, 1, timeout=5)

    expected = sum((i + 1) / 10 / (i + 3) for i in range(4))
    assert result.params["b"].item() == pytest.approx(0.5 + expected)
    assert result.weighted_metrics["loss"] == pytest.approx(expected)


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 1), (1.0, 10)])
def test_a_round_may_ask_one_client_or_all(fraction, expected):
    result = MetaFedAvg(participation_fraction=fraction).train_round(federation(), SENT, 1, timeout=5)

    assert result.counts.replied == expected


def test_traffic_and_time_are_counted():
    grid, strategy = federation(), MetaFedAvg(participation_fraction=0.5)
    size = sum(len(array.data) for array in params_to_arrays(SENT).values())

    trained_, judged = strategy.train_round(grid, SENT, 1, timeout=5), strategy.evaluate_round(grid, SENT, 1, timeout=5)

    assert (trained_.bytes_down, trained_.bytes_up) == (5 * size, 5 * size)
    assert (judged.bytes_down, judged.bytes_up) == (10 * size, 0)
    assert trained_.seconds > 0


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("grid_class", [FakeGrid, StreamingGrid])
@pytest.mark.parametrize("order", [lambda x: x[::-1], lambda x: x[1::2] + x[::2]], ids=["reversed", "riffled"])
def test_a_run_has_the_same_bits_in_whatever_order_clients_come_and_answer(weighting, grid_class, order):
    options = {"seed": 1, "weighting": weighting}

    result, other = trained(federation(), **options), trained(federation(grid_class, order), **options)

    assert content(result.arrays) == content(other.arrays)
    assert repr(result) == repr(other)


def test_another_seed_is_another_run():
    assert content(trained(federation(), seed=1).arrays) != content(trained(federation(), seed=2).arrays)


def test_new_clients_are_never_trained_on_and_can_be_evaluated():
    grid, strategy = federation(), MetaFedAvg(participation_fraction=1.0)

    for number in range(1, 4):
        strategy.train_round(grid, SENT, number, timeout=5)
    groups = {g: strategy.evaluate_round(grid, SENT, 3, group=g, timeout=5) for g in ("participating", "new", "all")}

    assert not {900, 901} & set(grid.asked("train"))
    assert {name: result.counts.replied for name, result in groups.items()} == {
        "participating": 10,
        "new": 2,
        "all": 12,
    }
    assert list(groups["new"].client_metrics) == ["new0", "new1"]
    assert groups["new"].client_metrics["new0"] == {"num-examples": 5, "test-loss": [1e3, 5e2]}


def test_an_evaluation_of_an_empty_group_asks_nobody():
    result = MetaFedAvg().evaluate_round(federation(num_new=0), SENT, 1, group="new", timeout=5)

    assert result.counts.sampled == 0
    assert result.mean_metrics == result.weighted_metrics == result.client_metrics == {}


def test_neither_training_nor_evaluation_changes_the_model_they_are_given():
    grid, strategy, params = federation(), MetaFedAvg(), copy.deepcopy(SENT)

    strategy.train_round(grid, params, 1, timeout=5)
    strategy.evaluate_round(grid, params, 1, group="all", timeout=5)

    torch.testing.assert_close(params, SENT, rtol=0, atol=0)


def test_every_client_has_records_of_its_own_around_the_same_arrays():
    config = ConfigRecord({"rates": [0.1, 0.2]})

    found = []

    def careless(message):
        found.append((list(message.content["arrays"]), list(message.content["config"])))
        message.content["config"]["rates"].append(0.3)
        message.content["config"]["mine"] = 1
        message.content["arrays"]["extra"] = Array(np.zeros(1))
        return error_reply(message)

    grid = FakeGrid({i: client(f"c{i}", train=careless) for i in range(5, 8)})

    MetaFedAvg(participation_fraction=1.0).train_round(grid, SENT, 3, timeout=5, config=config)

    sent = [message.content for message in grid.sent if message.metadata.message_type == "train"]
    assert [dict(records["config"]) for records in sent] == [
        {"rates": [0.1, 0.2, 0.3], "server-round": 3, "mine": 1}
    ] * 3
    assert found == [(["w", "b"], ["rates", "server-round"])] * 3
    assert len({id(records["arrays"]["w"]) for records in sent}) == 1
    assert dict(config) == {"rates": [0.1, 0.2]}


def test_the_callers_records_are_as_they_were_after_a_run():
    train_config, evaluate_config = ConfigRecord({"lr": 0.1}), ConfigRecord({"steps": [1, 2]})
    arrays = params_to_arrays(SENT)
    before = content(arrays)

    MetaFedAvg().start(federation(), arrays, 2, timeout=5, train_config=train_config, evaluate_config=evaluate_config)

    assert dict(train_config) == {"lr": 0.1}
    assert dict(evaluate_config) == {"steps": [1, 2]}
    assert content(arrays) == before


def test_clients_are_told_the_round_and_the_callers_options():
    grid = federation()

    MetaFedAvg().start(
        grid,
        params_to_arrays(SENT),
        2,
        timeout=5,
        train_config=ConfigRecord({"lr": 0.1}),
        evaluate_config=ConfigRecord({"steps": 3}),
    )

    told = {(m.metadata.message_type, *sorted(m.content["config"].items())) for m in grid.sent}
    assert told == {
        ("query",),
        *{("train", ("lr", 0.1), ("server-round", number)) for number in (1, 2)},
        *{("evaluate", ("server-round", number), ("steps", 3)) for number in (1, 2)},
    }


def test_a_run_returns_what_every_strategy_of_flower_returns():
    judged = []

    def evaluate_fn(number, arrays):
        judged.append(number)
        return MetricRecord({"central": float(arrays["b"].numpy())}) if number != 1 else None

    result = MetaFedAvg(participation_fraction=1.0).start(
        federation(num_clients=2, num_new=0), params_to_arrays(SENT), 2, timeout=5, evaluate_fn=evaluate_fn
    )

    step = (1 / 3 + 1 / 4) / 2
    assert judged == [0, 1, 2]
    assert result.arrays["b"].numpy() == pytest.approx(0.5 + 2 * step)
    assert result.train_metrics_clientapp[2]["loss"] == pytest.approx(step)
    assert result.evaluate_metrics_clientapp[1]["test-loss"] == pytest.approx([step, step / 2])
    assert dict(result.evaluate_metrics_serverapp) == {0: {"central": 0.5}, 2: result.evaluate_metrics_serverapp[2]}


@pytest.mark.parametrize(("interval", "expected"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4])])
def test_evaluations_come_at_their_interval(interval, expected):
    result = trained(federation(), num_rounds=5, evaluation_interval=interval)

    assert list(result.evaluate_metrics_clientapp) == expected


def test_a_run_that_goes_on_later_ends_in_the_same_bits():
    whole = trained(federation(), num_rounds=5, seed=8)
    judged, heard = [], []
    half = trained(federation(), num_rounds=2, seed=8)

    rest = MetaFedAvg(seed=8).start(
        federation(),
        half.arrays,
        5,
        timeout=5,
        evaluate_fn=lambda number, arrays: judged.append(number),
        first_round=3,
        on_round=lambda result: heard.append((result.round, result.counts.replied)),
    )

    assert content(rest.arrays) == content(whole.arrays)
    assert heard == [(3, 5), (4, 5), (5, 5)]
    assert judged == [3, 4, 5]


def test_without_rounds_the_model_is_the_initial_one():
    assert content(trained(federation(), num_rounds=0).arrays) == content(params_to_arrays(SENT))


def test_if_no_client_is_of_use_the_run_ends_with_the_initial_model():
    grid = FakeGrid({i: client(f"c{i}", train=error_reply) for i in (5, 6)})

    result = trained(grid)

    assert content(result.arrays) == content(params_to_arrays(SENT))
    assert dict(result.train_metrics_clientapp) == {}


def test_a_run_waits_for_its_clients_and_says_how_many_came():
    with pytest.raises(RunError, match="Expected 13 clients"):
        MetaFedAvg(min_clients=13).start(federation(), params_to_arrays(SENT), timeout=0.05)


def test_a_client_that_joins_between_rounds_takes_part_in_the_next():
    grid, strategy = federation(num_clients=1, num_new=0), MetaFedAvg(participation_fraction=1.0)
    strategy.train_round(grid, SENT, 1, timeout=5)
    grid.nodes[555] = client("late")

    result = strategy.train_round(grid, SENT, 2, timeout=5)

    assert list(result.client_metrics) == ["c0", "late"]


def test_a_client_that_left_is_not_asked():
    grid, strategy = federation(num_clients=3), MetaFedAvg(participation_fraction=1.0)
    strategy.train_round(grid, SENT, 1, timeout=5)
    del grid.nodes[101]

    result = strategy.train_round(grid, SENT, 2, timeout=5)

    assert vars(result.counts) == {"sampled": 2, "replied": 2, "rejected": 0, "failed": 0, "missing": 0, "dropped": 0}


def test_a_model_that_is_not_finite_does_not_start_a_round():
    with pytest.raises(ModelError, match="finite"):
        MetaFedAvg().train_round(federation(), {"w": torch.tensor([torch.nan])}, 1, timeout=5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"participation_fraction": 0.0}, "participation_fraction=0.0"),
        ({"participation_fraction": 1.5}, "participation_fraction=1.5"),
        ({"weighting": "size"}, "weighting='size'.*uniform or examples"),
        ({"aggregation": "maen"}, r"Unknown aggregation rule 'maen' .*Did you mean 'mean'"),
        ({"evaluation_interval": -1}, "evaluation_interval=-1"),
        ({"min_clients": 0}, "min_clients=0"),
        ({"max_growth": 0.5}, "max_growth=0.5"),
        ({"max_growth": float("nan")}, "max_growth=nan"),
    ],
)
def test_an_option_out_of_range_is_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        MetaFedAvg(**options)


def test_the_growth_that_counts_as_divergence_is_an_option():
    grid = FakeGrid({5: client("a", step=3.0)})

    counts = [
        MetaFedAvg(max_growth=growth).train_round(grid, {"w": torch.tensor([0.0])}, 1, timeout=5).counts
        for growth in (2.0, 4.0)
    ]

    assert [count.rejected for count in counts] == [1, 0]


@pytest.mark.parametrize("order", [list, lambda x: x[::-1]])
def test_flowers_own_loop_gets_the_same_result(order):
    options = {"seed": 3, "evaluation_interval": 2}

    stock = Strategy.start(MetaFedAvg(**options), federation(order=order), params_to_arrays(SENT), 3, timeout=5)
    ours = trained(federation(), **options)

    assert content(stock.arrays) == content(ours.arrays)
    assert stock.train_metrics_clientapp == ours.train_metrics_clientapp
    assert stock.evaluate_metrics_clientapp == ours.evaluate_metrics_clientapp


def test_flowers_own_loop_survives_clients_that_all_fail():
    grid = FakeGrid({i: client(f"c{i}", train=error_reply, evaluate=error_reply) for i in (5, 6)})

    stock = Strategy.start(MetaFedAvg(), grid, params_to_arrays(SENT), 2, timeout=5)

    assert dict(stock.train_metrics_clientapp) == dict(stock.evaluate_metrics_clientapp) == {}
    assert content(stock.arrays) == {}  # what Flower's loop says of a run without any aggregate


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_replies_of_a_round_that_was_not_configured_are_refused(kind):
    strategy = MetaFedAvg()
    aggregate, configure = getattr(strategy, f"aggregate_{kind}"), getattr(strategy, f"configure_{kind}")

    with pytest.raises(RunError, match=f"configure_{kind} before aggregate_{kind} of round 1, but it was not called"):
        aggregate(1, [])
    configure(1, params_to_arrays(SENT), ConfigRecord(), federation())
    with pytest.raises(RunError, match="of round 2, but it was called for round 1"):
        aggregate(2, [])


def test_with_equal_weights_the_result_is_that_of_fedavg():
    arrays = params_to_arrays(SENT)
    stock = FedAvg(min_train_nodes=4, min_available_nodes=4, fraction_evaluate=0.0)
    grid = FakeGrid({100 + i: client(f"c{i}", step=1 / (i + 3)) for i in range(4)})

    expected = stock.start(grid, arrays, num_rounds=3, timeout=5)
    result = MetaFedAvg(participation_fraction=1.0, evaluation_interval=0).start(grid, arrays, 3, timeout=5)

    torch.testing.assert_close(arrays_to_params(result.arrays), arrays_to_params(expected.arrays), rtol=1e-6, atol=1e-6)


def quickstart_app():
    """Return a ClientApp as Flower's quickstarts write it: other record names, no answer to queries."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = {name: Array(np.asarray(array + np.float32(1))) for name, array in received(message).items()}
        metrics = MetricRecord({"train_loss": 0.25, "num-examples": 32})
        return Message(RecordDict({"model": ArrayRecord(arrays), "scores": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"eval_loss": 0.5, "eval_acc": 0.75, "num-examples": 8})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def running(app):
    """Return a node that runs a ClientApp, as a SuperNode does."""

    def answer(message):
        try:
            return app(message, Context(1, message.metadata.dst_node_id, {}, RecordDict(), {}))
        except ValueError as error:
            return error_reply(message, f"{type(error)}:<'{error}'>")

    return answer


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_client_apps_of_others_can_be_trained(weighting, caplog):
    grid = FakeGrid({5: running(quickstart_app()), 6: running(quickstart_app())})

    result = trained(grid, num_rounds=2, participation_fraction=1.0, weighting=weighting)

    assert result.arrays["b"].numpy() == 2.5
    assert result.train_metrics_clientapp[1] == {"train_loss": 0.25}
    assert result.evaluate_metrics_clientapp[2] == {"eval_acc": 0.75, "eval_loss": 0.5}
    assert "it takes part as node-5" in caplog.text


def test_a_model_with_counters_and_flags_keeps_its_types():
    params = {"w": torch.ones(2), "seen": torch.tensor(7), "mask": torch.tensor([True, False])}

    def train(message):
        arrays = received(message)
        return reply(message, {**arrays, "seen": arrays["seen"] + 100_000}, {"num-examples": 1})

    grid = FakeGrid({i: client(f"c{i}", train=train) for i in (5, 6)})

    result = MetaFedAvg(participation_fraction=1.0, max_growth=2.0**20).train_round(grid, params, 1, timeout=5)

    assert result.params["seen"].dtype == torch.int64
    assert result.params["seen"].item() == 100_007
    assert result.params["mask"].tolist() == [True, False]
