"""A client does not trust its server either: what is no model like its own is refused before anything is computed."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from nufed.client.app import app
from nufed.client.workplace import workplace
from nufed.common.config import RunConfig
from nufed.common.errors import ModelError, WireError
from nufed.common.params import model_params
from nufed.common.settings import Settings
from nufed.common.wire import TrainRequest

RUN = RunConfig().updated({"model.name": "linear", "data.num-clients": 2, "data.num-new-clients": 0})
NODE = {"partition-id": 0}


def request():
    """Return a good request's records."""
    place = workplace(RUN.flat(), NODE, Settings())
    return TrainRequest(model_params(place.model), 1).to_records()


def ask(kind, records, run=RUN):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return app(message=Message(records, 7, kind), context=Context(1, 7, NODE, RecordDict(), run.flat()))


def with_first(change):
    """Change the first array."""

    def spoil(records):
        name = next(iter(records["arrays"]))
        records["arrays"][name] = change(records["arrays"][name])

    return spoil


def lying_about_its_size(array):
    """An array whose header claims 40 TB."""
    data = array.data.replace(str(array.shape).encode(), b"(9999999999999,)".ljust(len(str(array.shape))))
    return Array(array.dtype, array.shape, array.stype, data)


SPOILT = {
    "NaN": (with_first(lambda array: Array(array.numpy() * np.nan)), "NaN or infinite"),
    "another shape": (with_first(lambda array: Array(array.numpy()[None])), "has shape"),
    "another type": (with_first(lambda array: Array(array.numpy().astype(np.float64))), "type 'float64'"),
    "a size that is not true": (with_first(lying_about_its_size), "cannot be decoded"),
    "an archive": (with_first(lambda a: Array(a.dtype, a.shape, a.stype, b"PK\3\4" + a.data[4:])), "cannot be decoded"),
    "a tensor of torch": (with_first(lambda a: Array(a.dtype, a.shape, "torch.tensor", a.data)), "of the kind"),
    "an array too many": (lambda records: records["arrays"].update(x=Array(np.zeros(3))), "'x' was not expected"),
    "no arrays": (lambda records: records.update(arrays=ArrayRecord()), "is missing"),
    "two records": (lambda records: records.update(more=ArrayRecord()), "one record of arrays, got 2"),
    "no round": (lambda records: records.pop("config"), "'server-round'"),
    "a truth value as round": (
        lambda records: records.update(config=ConfigRecord({"server-round": True})),
        "server-round",
    ),
    "a round below 0": (lambda records: records.update(config=ConfigRecord({"server-round": -1})), "=-1 is refused"),
    "a round without end": (lambda records: records.update(config=ConfigRecord({"server-round": 10**5000})), "bits is"),
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(("spoil", "reason"), SPOILT.values(), ids=SPOILT)
def test_what_is_no_model_like_the_clients_is_refused(spoil, reason, kind):
    """With what differs and what to do."""
    records = request()
    spoil(records)

    with pytest.raises(WireError, match=reason):
        ask(kind, records)


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_server_whose_frozen_part_is_another_one_is_refused(kind):
    """Its trained parameters would be learned on top of something else; the server is told, before any round."""
    run = RUN.updated({"model.trainable": "1.bias"})
    place = workplace(run.flat(), NODE, Settings())
    records = TrainRequest(model_params(place.model), 1).to_records()
    records["config"]["frozen"] = place.frozen
    assert ask(kind, records, run).has_content()

    records["config"]["frozen"] = "0123456789abcdef" * 2
    with pytest.raises(
        ModelError, match=f"server's model .*BLAKE2b 0123456789ab.* another \\({place.frozen[:12]}\\)"
    ) as refused:
        ask(kind, records, run)
    records["config"]["frozen"] = 7
    with pytest.raises(WireError, match="frozen=7 is refused"):
        ask(kind, records, run)
    assert refused.value.sendable


def test_the_request_that_is_spoilt_above_is_a_good_one():
    """The contrast that makes the test above mean something."""
    assert ask("train", request()).has_content()
