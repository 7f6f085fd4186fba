"""What a client may answer is bounded by what it was asked."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from nufed.common.secure_wire import TOLD, MaskedReply, told_records
from nufed.common.wire import ARRAYS, TrainReply
from nufed.deploy.network.message_bytes import message_parts
from nufed.deploy.network.reply_bounds import largest_reply

MIB = 2**20


def asked(kind, values=None, **config):
    content = RecordDict({"config": ConfigRecord(config)})
    if values is not None:
        content[ARRAYS] = ArrayRecord({f"w{index}": each for index, each in enumerate(map(_array, values))})
    return Message(content, 7, kind)


def _array(values):
    return ArrayRecord([values])["0"]


def size(content, message):
    return sum(map(len, message_parts(Message(content, reply_to=message))))


@pytest.fixture(autouse=True)
def _identity():
    """Messages can be made while a run is going on alone."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def test_a_reply_to_a_training_message_is_its_arrays_and_a_megabyte():
    values = [np.zeros(3 * MIB // 4, np.float32)] * 4
    message = asked("train", values)
    fair = TrainReply({f"w{index}": torch.zeros(3 * MIB // 4) for index in range(4)}, 5, {"loss": 0.1}).to_records()

    bound = largest_reply(message)

    assert size(fair, message) <= bound < 12 * MIB + 1.1 * MIB


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_reply_under_masks_fits_though_its_integers_are_wider(dtype):
    message = asked("train", [np.zeros(MIB, dtype)], **{TOLD: b"task"})
    masked = MaskedReply(b"told", {"w0": torch.zeros(MIB, dtype=torch.int64)}, 5).to_records()

    assert size(masked, message) <= largest_reply(message)


@pytest.mark.parametrize(
    ("kind", "most"),
    [("evaluate", 8), ("query", 4), ("query.statistics", 4), ("query.secure_keys", 4), ("query.secure_shares", 8)],
)
def test_what_is_no_training_sends_no_arrays(kind, most):
    assert largest_reply(asked(kind, [np.zeros(64 * MIB // 4, np.float32)])) == most * MIB


def test_the_shares_of_ten_thousand_peers_fit():
    message = asked("query.secure_shares")

    assert size(told_records(bytes(700 * 10_000)), message) <= largest_reply(message)
