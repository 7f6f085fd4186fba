"""Valid messages, changed at random: whatever comes, a round ends, counts it, and keeps what is refused out."""

import json
import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.config import EvaluationConfig
from nufed.common.examples import TaskInfo
from nufed.common.json_text import json_ready
from nufed.common.message_schema import curve_shape
from nufed.common.model_arrays import params_to_arrays
from nufed.common.wire import ClientDescription
from nufed.strategy import MetaFedAvg
from nufed.strategy.results import average
from tests.strategy.fake_grid import FakeGrid, client

SENT = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(0.5)}
SHAPE = curve_shape(EvaluationConfig(num_adapt_steps=1, primary_step=1), TaskInfo("classification", (2,), 3))
TRAINED = {"num-examples": 10, "loss": 1.0, "growth": 1.0, "gradient-evaluations": 4, "hvps": 3, "seconds": 0.1}
JUDGED = {"num-examples": 5, "test-loss": [1.0, 0.5], "test-accuracy": [0.25, 0.5], "validation-loss": [1.0, 1.0]}
MOST_SHOWN, MOST_KEPT = 1000, 20_000

EXTREMES = [0, -1, 1, 2**31, 2**63 - 1, -(2**63), 10**5000, 0.0, -0.0, 0.5, 200.0, 1e308, -1e308, 5e-324]
NUMBERS = st.one_of(
    st.sampled_from([*EXTREMES, math.nan, math.inf, -math.inf]), st.integers(-(2**63), 2**63 - 1), st.floats()
)
LISTS = st.one_of(
    st.lists(st.floats(), max_size=4),
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=2),
    st.lists(st.integers(-9, 9), max_size=4),
    st.sampled_from([[1, True], [0.5] * 100_000, [10**5000]]),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["=HYPERLINK(1)", "a\nb", "\x1b[2J", "\u202e", "", "x" * 200_000, "client-id", "bad", "good-1"]),
)
NAMES = st.one_of(st.sampled_from([*TRAINED, *JUDGED, "w", "b", "num-support"]), TEXTS)
CONFIG_VALUES = st.one_of(
    NUMBERS, TEXTS, st.booleans(), st.binary(max_size=9), st.lists(st.text(max_size=3), max_size=3)
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 6, -1, 2**31, 2**63, 10**5000]), max_size=70).map(tuple)
DTYPES = st.sampled_from(["float32", "float64", "object", "<f4", ">f4", "", "complex64", "bfloat16", "x" * 9999, "O"])


def npy(draw):
    """Return the bytes of an array that has to do with the ones sent, or of none."""
    values = draw(st.sampled_from([np.nan, np.inf, 3e38, 1e300, 0.0, 1.0, -0.5]))
    with np.errstate(over="ignore"):
        array = np.full(draw(st.sampled_from([(), (2, 3), (3, 2), (0,), (1,)])), values).astype(
            draw(st.sampled_from(["float32", "float64", "float16", ">f4", "bool"]))
        )
    data = bytearray(Array(np.asarray(array, order=draw(st.sampled_from(["C", "F"])))).data)
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.one_of(st.none(), st.integers(0, len(data))))
    return bytes(data[:cut]) + draw(st.sampled_from([b"", b"\0", b"PK\3\4"]))


def changed_array(draw, array):
    """Return an array with one of its four parts changed."""
    kind = draw(st.sampled_from(["dtype", "shape", "stype", "data", "all"]))
    dtype = draw(DTYPES) if kind in ("dtype", "all") else array.dtype
    shape = draw(SHAPES) if kind in ("shape", "all") else array.shape
    stype = draw(TEXTS) if kind == "stype" else array.stype
    return Array(dtype, shape, stype, npy(draw) if kind in ("data", "all") else array.data)


def change_once(draw, records):
    """Drop, add, rename or change something of a message's records in place."""
    key = draw(st.sampled_from(sorted(records)))
    record = records[key]
    kind = draw(st.sampled_from(["drop record", "new record", "drop", "change", "change", "change", "add"]))
    if kind == "drop record":
        del records[key]
    elif kind == "new record":
        records[draw(TEXTS)] = draw(st.sampled_from([ArrayRecord(), MetricRecord(), ConfigRecord(), record]))
    elif kind == "drop" and len(record):
        del record[draw(st.sampled_from(sorted(record)))]
    else:
        name = draw(st.sampled_from(sorted(record))) if kind == "change" and len(record) else draw(NAMES)
        if isinstance(record, ArrayRecord):
            record[name] = changed_array(draw, record.get(name) or Array(np.zeros((2, 3), np.float32)))
        elif isinstance(record, MetricRecord):
            record[name] = draw(st.one_of(NUMBERS, LISTS))
        else:
            record[name] = draw(CONFIG_VALUES)


@st.composite
def replies(draw, kind):
    """Return a function from a request to a changed reply, or to a few of them."""
    records = {
        "query": lambda: ClientDescription("bad", "participating", 10, 2, 5).to_records(),
        "train": lambda: RecordDict({"arrays": params_to_arrays(moved(1.0)), "metrics": MetricRecord(dict(TRAINED))}),
        "evaluate": lambda: RecordDict({"metrics": MetricRecord(dict(JUDGED))}),
    }[kind]()
    for _ in range(draw(st.integers(0, 3))):
        if records:
            change_once(draw, records)
    error = draw(st.one_of(st.none(), st.none(), st.none(), st.tuples(st.integers(0, 2**31 - 1), TEXTS)))
    copies = draw(st.sampled_from([1, 1, 1, 2]))
    return lambda message: [Message(Error(*error) if error else records, reply_to=message) for _ in range(copies)]


def moved(step):
    return {name: tensor + step for name, tensor in SENT.items()}


def federation(bad):
    """Return a strategy and a grid of two good clients and a bad one, by type of message."""

    def answer(message):
        kind = message.metadata.message_type
        return bad[kind](message) if kind in bad else good_as_bad(message)

    good_as_bad = client("bad", step=0.25)
    judged = lambda message: Message(RecordDict({"metrics": MetricRecord(dict(JUDGED))}), reply_to=message)  # noqa: E731
    nodes = {1: client("good-1", step=0.5, evaluate=judged), 2: client("good-2", step=0.75, evaluate=judged), 3: answer}
    return FakeGrid(nodes)


def check_shown(result):
    """What is told of a phase is short, on one line, and can be written."""
    counts = vars(result.counts)
    assert counts["sampled"] == sum(counts[kind] for kind in ("replied", "rejected", "failed", "missing"))
    assert len(result.problems) == counts["sampled"] - counts["replied"]
    assert all(reason.isprintable() and len(reason) < MOST_SHOWN for reason in result.problems.values())
    assert all(name.isprintable() and len(name) <= 128 for name in (*result.problems, *result.client_metrics))
    told = json.dumps(json_ready(result.client_metrics), allow_nan=False, ensure_ascii=False).encode()
    assert len(told) < 3 * MOST_KEPT


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@given(bad=replies("train"))
def test_any_reply_to_a_training_message_counts_as_it_is_or_not_at_all(weighting, bad):
    strategy = MetaFedAvg(participation_fraction=1.0, weighting=weighting)
    grid = federation({"train": bad})
    strategy.discover(grid, expected=3, timeout=1)

    result = strategy.train_round(grid, SENT, 1, timeout=0.01)

    check_shown(result)
    assert all(torch.isfinite(tensor).all() for tensor in result.params.values())
    assert result.counts.replied >= 2
    if "bad" in result.problems:
        assert torch.equal(result.params["b"], SENT["b"] + 0.625)
        assert result.mean_metrics == {"loss": 0.625}


@given(bad=replies("evaluate"))
def test_any_reply_to_an_evaluation_counts_as_it_is_or_not_at_all(bad):
    grid = federation({"evaluate": bad})

    result = MetaFedAvg().evaluate_round(grid, SENT, 1, timeout=0.01, shape=SHAPE)

    check_shown(result)
    for metrics in result.client_metrics.values():
        loss, accuracy = metrics["test-loss"], metrics["test-accuracy"]
        assert all(0 <= share <= 1 or not math.isfinite(at) for share, at in zip(accuracy, loss, strict=True))
    if "bad" in result.problems:
        assert average(result.client_metrics, "uniform").curves["test-accuracy"] == [0.25, 0.5]


@given(bad=replies("query"))
def test_any_answer_to_who_are_you_is_one_client_or_none(bad):
    strategy = MetaFedAvg(participation_fraction=1.0)
    grid = federation({"query": bad, "train": client("bad", step=0.25)})
    strategy.discover(grid, expected=2, timeout=0.05)

    result = strategy.train_round(grid, SENT, 1, timeout=0.01)

    check_shown(result)
    assert len({member.node_id for member in strategy.members.values()}) == len(strategy.members) <= 3
    assert {"good-1", "good-2"} <= strategy.members.keys()
    assert result.counts.replied == result.counts.sampled >= 2
