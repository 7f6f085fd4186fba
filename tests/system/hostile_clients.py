"""Clients that answer everything wrongly: what an admitted key can put into a reply, one specimen for each client.

    QUERIES       answers to the question who a client is
    TRAINED       replies to a training message
    JUDGED        replies to an evaluation message

Each is a function from a message to the reply. All but those of QUERIES say rightly who they are, so that they are
asked to train and to judge.
"""

import io
import math

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from nufed.common.wire import ClientDescription

SIZES = {"num-support": 40, "num-validation": 10, "num-test": 10}
GOOD = {"num-examples": 40, "loss": 0.5, "gradient-evaluations": 4, "hvps": 3, "seconds": 0.1}
GOOD_CURVES = {"num-examples": 10, "test-loss": [1.0, 0.5, 0.4], "test-accuracy": [0.1, 0.5, 0.6]}
ESCAPES = "\x1b[2J\x1b]0;mine\x07\r\n2026-01-01 run complete\n\u202eeno"
POISON = 0.125
"""What is added to every weight by those whose model alone would be taken."""


def describing(client_id, group="participating", **sizes):
    """Return a description with anything in it."""
    records = RecordDict({"config": ConfigRecord({"client-id": client_id, "group": group})})
    records["metrics"] = MetricRecord({**SIZES, **{name.replace("_", "-"): value for name, value in sizes.items()}})
    return lambda message: Message(records, reply_to=message)


def without(key):
    def answer(message):
        records = ClientDescription("without", "participating", 40, 10, 10).to_records()
        del records["config" if key == "group" else "metrics"][key]
        return Message(records, reply_to=message)

    return answer


QUERIES = {
    "a line feed": describing("a\nb"),
    "escape sequences": describing(ESCAPES),
    "a direction mark": describing("a\u202eb"),
    "two megabytes": describing("x" * 2_000_000),
    "a formula": describing('=HYPERLINK("http://example.org","a")'),
    "nothing": describing(""),
    "bytes": describing(b"client"),
    "a number": describing(7),
    "a list": describing(["a", "b"]),
    "a group of its own": describing("g", group=ESCAPES * 1000),
    "no group": without("group"),
    "no size": without("num-test"),
    "a size below 0": describing("s", num_support=-1),
    "a size of NaN": describing("s", num_support=math.nan),
    "a size beyond 31 bits": describing("s", num_test=2**31),
    "a list of sizes": describing("s", num_support=[1, 2]),
    "an error": lambda message: Message(Error(2, ESCAPES * 50_000), reply_to=message),
}


def poisoned(message):
    """Return a model that would be taken, and would move the mean."""
    arrays = message.content["arrays"].items()
    return ArrayRecord({name: Array(array.numpy() + np.float32(POISON)) for name, array in arrays})


def reporting(**metrics):
    """Return a client with a model that would be taken and metrics that are not."""
    reported = {**GOOD, **{name.replace("_", "-"): value for name, value in metrics.items()}}

    def train(message):
        return Message(RecordDict({"arrays": poisoned(message), "metrics": MetricRecord(reported)}), reply_to=message)

    return train


def with_arrays(change):
    """Return a client whose arrays were changed."""

    def train(message):
        arrays = poisoned(message)
        change(arrays)
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(GOOD))}), reply_to=message)

    return train


def first(change):
    """Change the first array."""

    def spoil(arrays):
        name = next(iter(arrays))
        arrays[name] = change(arrays[name])

    return with_arrays(spoil)


def holding(make):
    """Replace the first array's bytes by `make(its NumPy array)`."""
    return first(lambda array: Array(array.dtype, array.shape, array.stype, make(array.numpy())))


def archive(array):
    """Return a compressed archive of 64 MB of zeros."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, w=np.zeros(2**23))
    return buffer.getvalue()


def lying(array):
    """Return bytes whose header claims 40 TB."""
    data = Array(array).data
    shape = str(array.shape).encode()
    return data.replace(shape + b", }", b"(9999999999999,), }").ljust(len(data), b"\0")


def records(**changes):
    def train(message):
        content = RecordDict({"arrays": poisoned(message), "metrics": MetricRecord(dict(GOOD))})
        for key, record in changes.items():
            if record is None:
                del content[key]
            else:
                content[key] = record
        return Message(content, reply_to=message)

    return train


TRAINED = {
    "infinite evaluations": reporting(gradient_evaluations=math.inf),
    "products that are no number": reporting(hvps=math.nan),
    "a list of products": reporting(hvps=[1, 2, 3]),
    "products below 0": reporting(hvps=-1),
    "more products than can be counted": reporting(hvps=2**63 - 1),
    "half an evaluation": reporting(gradient_evaluations=0.5),
    "examples below 0": reporting(num_examples=-1),
    "examples beyond 31 bits": reporting(num_examples=2**31),
    "infinite examples": reporting(num_examples=math.inf),
    "a list of losses": reporting(loss=[0.5, 0.5]),
    "a time of NaN": reporting(seconds=math.nan),
    "a growth below 0": reporting(growth=-1.0),
    "a metric of 100,000 numbers": reporting(mine=[0.5] * 100_000),
    "1,000 metrics": reporting(**{f"m{index}": index for index in range(1000)}),
    "a metric's name of two megabytes": reporting(**{"x" * 2_000_000: 1}),
    "a metric's name with escapes": reporting(**{ESCAPES: 1}),
    "NaN": first(lambda array: Array(array.numpy() * np.float32(np.nan))),
    "infinity": first(lambda array: Array(array.numpy() + np.float32(np.inf))),
    "a huge model": first(lambda array: Array(array.numpy() + np.float32(1e30))),
    "another shape": first(lambda array: Array(array.numpy()[..., None])),
    "another type": first(lambda array: Array(array.numpy().astype(np.float64))),
    "no bytes": holding(lambda array: b""),
    "a lie about the size": holding(lying),
    "an archive": holding(archive),
    "a pickle": holding(lambda array: b"\x80\x04K\x01."),
    "objects": holding(lambda array: Array(array).data.replace(b"'<f4'", b"'|O' ")),
    "another kind of array": first(lambda array: Array(array.dtype, array.shape, ESCAPES, array.data)),
    "a shape of a thousand dimensions": first(lambda a: Array(a.dtype, (1,) * 1000, a.stype, a.data)),
    "an array too many": with_arrays(lambda arrays: arrays.update({ESCAPES * 20_000: Array(np.zeros(1))})),
    "an array too few": with_arrays(lambda arrays: arrays.pop(next(iter(arrays)))),
    "no arrays": records(arrays=ArrayRecord()),
    "two records of arrays": records(more=ArrayRecord()),
    "no record of metrics": records(metrics=None),
    "an empty record of metrics": records(metrics=MetricRecord()),
    "nothing at all": lambda message: Message(RecordDict(), reply_to=message),
    "an error": lambda message: Message(Error(2, ESCAPES), reply_to=message),
    "an error without end": lambda message: Message(Error(2**31 - 1, ESCAPES * 50_000), reply_to=message),
}


def judging(**changes):
    """Return a client whose curves are not what was agreed; None drops one."""
    curves = {**GOOD_CURVES, **{name.replace("_", "-"): value for name, value in changes.items()}}
    curves = {name: value for name, value in curves.items() if value is not None}
    return lambda message: Message(RecordDict({"metrics": MetricRecord(curves)}), reply_to=message)


JUDGED = {
    "no accuracy": judging(test_accuracy=None),
    "no loss": judging(test_loss=None),
    "an accuracy of NaN": judging(test_accuracy=[0.1, math.nan, 0.6]),
    "an accuracy of 200": judging(test_accuracy=[0.1, 200.0, 0.6]),
    "an accuracy below 0": judging(test_accuracy=[0.1, -0.5, 0.6]),
    "a short curve": judging(test_accuracy=[0.5, 0.6]),
    "a long curve": judging(test_loss=[1.0] * 50_000),
    "a number for a curve": judging(test_loss=0.5),
    "NaN in a validation curve": judging(validation_accuracy=[math.nan] * 3, validation_loss=[1.0] * 3),
    "examples below 0": judging(num_examples=-10),
    "no examples": judging(num_examples=None),
    "100,000 other numbers": judging(mine=[1] * 100_000),
    "an error": lambda message: Message(Error(2, ESCAPES), reply_to=message),
}


class Hostile:
    """Answers each type of message by a function of its own."""

    def __init__(self, name, **answers):
        self._answers = {"query": describing(name), **answers}

    def __call__(self, message, context):
        return self._answers[message.metadata.message_type](message)


def hostile_clients():
    """Return (those that say rightly who they are, those that do not): apps by the name of their key."""
    judged = list(JUDGED.values())
    asked = {
        f"hostile-{index:02d}": Hostile(f"hostile-{index:02d}", train=train, evaluate=judged[index % len(judged)])
        for index, train in enumerate(TRAINED.values())
    }
    unknown = {
        f"unknown-{index:02d}": Hostile("", query=query, train=reporting(), evaluate=judging())
        for index, query in enumerate(QUERIES.values())
    }
    return asked, unknown
