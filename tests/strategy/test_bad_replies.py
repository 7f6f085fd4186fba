"""One client of four answers badly: the round goes on as if it had not been asked."""

import io
import logging
import math
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg

from nufed.common.model_arrays import params_to_arrays
from nufed.strategy import MetaFedAvg
from nufed.strategy.results import average
from tests.strategy.fake_grid import FakeGrid, StreamingGrid, client, error_reply, received, reply, unreachable

SENT = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(0.5)}
GOOD = {"num-examples": 10, "loss": 1.0}


def with_arrays(change):
    """Return a client that changes the arrays it was sent and reports good metrics."""

    def train(message):
        arrays = received(message)
        change(arrays)
        return reply(message, arrays, GOOD)

    return train


def with_metrics(metrics):
    """Return a client that sends a good model and these metrics."""
    return lambda message: reply(message, received(message), metrics)


def with_bytes(data, stype="numpy.ndarray"):
    """Return a client whose array is these bytes."""

    def train(message):
        arrays = message.content["arrays"].copy()
        arrays["b"] = Array("float32", (), stype, data)
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(GOOD)}), reply_to=message)

    return train


def numpy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def one_element(value):
    def change(arrays):
        arrays["w"] = arrays["w"].copy()
        arrays["w"][1, 2] = value

    return change


def two_records_of_arrays(message):
    records = RecordDict({"arrays": ArrayRecord(), "more": ArrayRecord(), "metrics": MetricRecord(GOOD)})
    return Message(records, reply_to=message)


def without_content(message):
    answer = reply(message, None, None)
    answer.__dict__["_content"] = None
    return answer


REJECTED = {
    "NaN in one element": (with_arrays(one_element(np.nan)), "'w' contains NaN or infinite"),
    "Inf in one element": (with_arrays(one_element(-np.inf)), "'w' contains NaN or infinite"),
    "weights times a million": (with_arrays(lambda a: a.update(w=a["w"] * 1e6)), "beyond the limit"),
    "shape (n, 1) that would broadcast": (with_arrays(lambda a: a.update(w=a["w"][:, :1])), r"shape \(2, 1\)"),
    "shape of one more row": (with_arrays(lambda a: a.update(w=np.zeros((3, 3), np.float32))), r"shape \(3, 3\)"),
    "a scalar as a vector": (with_arrays(lambda a: a.update(b=a["b"].reshape(1))), r"'b' has shape \(1,\)"),
    "another type": (with_arrays(lambda a: a.update(w=a["w"].astype(np.float64))), "type 'float64', expected float32"),
    "another name": (with_arrays(lambda a: a.update(v=a.pop("w"))), "'w', which is missing"),
    "an array too few": (with_arrays(lambda a: a.pop("b")), "'b', which is missing"),
    "an array too many": (with_arrays(lambda a: a.update(c=a["b"])), "'c' was not expected"),
    "no arrays": (lambda message: reply(message, None, GOOD), "one record of arrays, got 0"),
    "two records of arrays": (two_records_of_arrays, "one record of arrays, got 2"),
    "no metrics": (lambda message: reply(message, received(message), None), "one record of metrics, got 0"),
    "no num-examples": (with_metrics({"loss": 1.0}), "expected 'num-examples'"),
    "negative num-examples": (with_metrics({"num-examples": -10}), "num-examples=-10"),
    "NaN num-examples": (with_metrics({"num-examples": math.nan}), "num-examples=nan"),
    "infinite num-examples": (with_metrics({"num-examples": math.inf}), "num-examples=inf"),
    "fractional num-examples": (with_metrics({"num-examples": 9.5}), "num-examples=9.5"),
    "num-examples beyond 31 bits": (with_metrics({"num-examples": 2**31}), "num-examples=2147483648"),
    "a list of num-examples": (with_metrics({"num-examples": [10]}), "num-examples"),
    "no content": (without_content, "the reply is empty"),
    "an array of text": (with_bytes(numpy_bytes(np.array(["x"]))), "'b' cannot be decoded"),
    "bytes of nothing": (with_bytes(b""), "'b' cannot be decoded"),
    "bytes that only begin like an array": (
        with_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '7)"),
        "'b' cannot be decoded",
    ),
    "bytes of a broken archive": (with_bytes(b"PK\x03\x04" + bytes(60)), "'b' cannot be decoded"),
    "a pickle": (with_bytes(b"\x80\x04K\x01."), "'b' cannot be decoded"),
    "ten terabytes announced": (
        with_bytes(numpy_bytes(np.zeros((2, 3))).replace(b"(2, 3)", b"(999999999999, 3)")),
        "'b' cannot be decoded",
    ),
    "another framework's tensor": (with_bytes(b"...", stype="torch.tensor"), "'b' cannot be decoded"),
}
REJECTED_AS_WEIGHTS = {
    "zero num-examples": (with_metrics({"num-examples": 0, "loss": 1.0}), "num-examples=0 is refused as a weight"),
    "a billion num-examples": (with_metrics({"num-examples": 10**9, "loss": 1.0}), "expected 1 to 10"),
}
FAILED = {
    "error": (error_reply, "error 2: .*boom"),
    "node gone": (unreachable, "error 5: Node Unavailable"),
}
MISSING = {"no answer": (lambda message: None, "no reply within 0.1 s")}


def run_round(bad=None, weighting="uniform", grid_class=FakeGrid):
    """Run a round of three good clients, and of a fourth that answers by `bad`."""
    nodes = {i: client(f"c{i}", step=i / 10, num_examples=10 * i) for i in (2, 3, 4)}
    if bad:
        nodes[1] = client("bad", train=bad)
    strategy = MetaFedAvg(participation_fraction=1.0, weighting=weighting)
    grid = grid_class(nodes)
    strategy.discover(grid, expected=len(nodes), timeout=1)
    return strategy.train_round(grid, SENT, 1, timeout=0.1)


def assert_left_out(result, weighting, outcome, reason):
    without = run_round(weighting=weighting)
    assert vars(result.counts) == {
        "sampled": 4,
        "replied": 3,
        **{kind: int(kind == outcome) for kind in ("rejected", "failed", "missing", "dropped")},
    }
    assert list(result.problems) == ["bad"]
    assert re.search(reason, result.problems["bad"])
    assert {name: tensor.tolist() for name, tensor in result.params.items()} == {
        name: tensor.tolist() for name, tensor in without.params.items()
    }
    assert result.mean_metrics == without.mean_metrics
    assert "bad" not in result.client_metrics


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize(("bad", "reason"), REJECTED.values(), ids=REJECTED)
def test_a_reply_that_cannot_count_is_rejected_with_its_reason(bad, reason, weighting):
    result = run_round(bad, weighting)

    assert_left_out(result, weighting, "rejected", reason)


@pytest.mark.parametrize(("bad", "reason"), REJECTED_AS_WEIGHTS.values(), ids=REJECTED_AS_WEIGHTS)
def test_numbers_of_examples_that_would_distort_the_mean_are_rejected_as_weights(bad, reason):
    result = run_round(bad, "examples")

    assert_left_out(result, "examples", "rejected", reason)


@pytest.mark.parametrize(("bad", "_"), REJECTED_AS_WEIGHTS.values(), ids=REJECTED_AS_WEIGHTS)
def test_numbers_of_examples_do_not_matter_where_clients_weigh_the_same(bad, _):
    result = run_round(bad, "uniform")

    assert result.counts.replied == 4
    assert result.params["b"].item() == pytest.approx(0.5 + (0 + 0.2 + 0.3 + 0.4) / 4)


@pytest.mark.parametrize("grid_class", [FakeGrid, StreamingGrid])
@pytest.mark.parametrize(("bad", "reason"), FAILED.values(), ids=FAILED)
def test_a_client_that_fails_is_counted_as_failed(bad, reason, grid_class):
    result = run_round(bad, grid_class=grid_class)

    assert_left_out(result, "uniform", "failed", reason)


@pytest.mark.parametrize("grid_class", [FakeGrid, StreamingGrid])
@pytest.mark.parametrize(("bad", "reason"), MISSING.values(), ids=MISSING)
def test_a_client_that_does_not_answer_is_counted_as_missing(bad, reason, grid_class):
    result = run_round(bad, grid_class=grid_class)

    assert_left_out(result, "uniform", "missing", reason)


def test_an_extra_metric_does_not_disturb_the_round():
    result = run_round(with_metrics({**GOOD, "mine": 3}))

    assert result.counts.replied == 4
    assert set(result.mean_metrics) == {"loss"}
    assert result.client_metrics["bad"]["mine"] == 3


def test_a_metric_that_a_client_does_not_report_is_only_left_out_of_the_averages():
    result = run_round(with_metrics({"num-examples": 10}))

    assert result.counts.replied == 4
    assert result.mean_metrics == {}


def test_if_nobody_gives_a_usable_reply_the_model_stays_as_it_was():
    grid = FakeGrid({1: client("a", train=error_reply), 2: client("b", train=REJECTED["no arrays"][0])})
    strategy = MetaFedAvg(participation_fraction=1.0)

    result = strategy.train_round(grid, SENT, 1, timeout=0.1)

    assert result.params is SENT
    assert (result.counts.replied, result.counts.failed, result.counts.rejected) == (0, 1, 1)


def test_of_two_replies_by_one_client_the_first_counts(caplog):
    def twice(message):
        return [reply(message, received(message), GOOD), reply(message, {"w": np.full((2, 3), 9, np.float32)}, GOOD)]

    result = run_round(twice)

    assert result.counts.replied == 4
    assert result.strays == 1
    assert result.params["b"].item() == pytest.approx(0.5 + (0 + 0.2 + 0.3 + 0.4) / 4)
    assert "client bad has answered already" in caplog.text


def test_a_reply_that_nobody_was_asked_for_is_ignored(caplog):
    def intruder(message):
        forged = reply(message, received(message), GOOD)
        forged.metadata.__dict__.update(_src_node_id=77, _reply_to_message_id="message-0")
        return forged

    result = run_round(intruder)

    assert_left_out(result, "uniform", "missing", "no reply")
    assert result.strays == 1
    assert "nobody asked it" in caplog.text


def test_the_same_trouble_of_a_client_is_told_once_and_counted_every_round(caplog):
    caplog.set_level(logging.WARNING, logger="nufed.strategy")
    sizes = iter([1e6, 2e7, 3e8])

    def growing(message):
        arrays = received(message)
        return reply(message, {**arrays, "w": arrays["w"] * np.float32(next(sizes))}, GOOD)

    grid = FakeGrid({1: client("bad", train=growing), 2: client("good")})
    strategy = MetaFedAvg(participation_fraction=1.0)

    results = [strategy.train_round(grid, SENT, number, timeout=0.1) for number in (1, 2, 3)]

    assert [result.counts.rejected for result in results] == [1, 1, 1]
    assert caplog.text.count("Client bad is left out (rejected)") == 1


def test_a_client_that_has_more_data_than_it_announced_weighs_it_after_being_asked_anew():
    grid = FakeGrid({1: client("growing", num_examples=10), 2: client("other", num_examples=10)})
    strategy = MetaFedAvg(participation_fraction=1.0, weighting="examples")
    strategy.discover(grid, expected=2, timeout=1)
    grid.nodes[1] = client("growing", num_examples=30)

    counts = [strategy.train_round(grid, SENT, number, timeout=0.1).counts for number in (1, 2)]

    assert [count.rejected for count in counts] == [1, 0]


def test_in_an_evaluation_a_bad_reply_is_left_out_too():
    nodes = {i: client(f"c{i}", step=float(i)) for i in (2, 4)}
    nodes[1] = client("bad", evaluate=lambda message: reply(message, None, {"test-loss": [1.0, 1.0]}))
    strategy = MetaFedAvg()

    result = strategy.evaluate_round(FakeGrid(nodes), SENT, 1, timeout=0.1)

    assert (result.counts.replied, result.counts.rejected) == (2, 1)
    assert "num-examples" in result.problems["bad"]
    assert average(result.client_metrics, "uniform").curves == {"test-loss": [3.0, 1.5]}


def stock_round(bad):
    """Run the same round with Flower's FedAvg."""
    grid = FakeGrid({i: client(f"c{i}", step=i / 10) for i in (2, 3, 4)} | {1: client("bad", train=bad)})
    strategy = FedAvg(fraction_evaluate=0.0)
    messages = strategy.configure_train(1, params_to_arrays(SENT), ConfigRecord(), grid)
    return strategy.aggregate_train(1, grid.send_and_receive(messages))


def test_the_stock_strategy_is_poisoned_by_one_nan():
    """The contrast that makes the tests above mean something."""
    arrays, _ = stock_round(REJECTED["NaN in one element"][0])

    assert np.isnan(arrays["w"].numpy()[1, 2])


def test_the_stock_strategy_dies_of_one_missing_number():
    with pytest.raises(InconsistentMessageReplies):
        stock_round(REJECTED["no num-examples"][0])
