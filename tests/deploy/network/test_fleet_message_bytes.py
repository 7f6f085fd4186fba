"""What is put together by hand is what protobuf would have written."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.node_pb2 import Node
from hypothesis import given, settings
from hypothesis import strategies as st

from nufed.deploy.network.message_bytes import pull_response, push_request

NAMES = st.text(max_size=200)
SHAPES = st.lists(st.integers(0, 5), max_size=3)
ARRAYS = st.builds(
    lambda shape, dtype: Array(np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)),
    SHAPES,
    st.sampled_from(["float32", "float64", "int64", "bool"]),
)
RECORDS = st.one_of(
    st.dictionaries(NAMES, ARRAYS, max_size=4).map(ArrayRecord),
    st.dictionaries(NAMES, st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)), max_size=4).map(
        MetricRecord
    ),
    st.dictionaries(NAMES, st.one_of(st.text(), st.booleans(), st.binary(max_size=300)), max_size=4).map(ConfigRecord),
)


def message(content):
    metadata = Metadata(7, "a" * 64, 1, 2**63, "b" * 64, "3", 1.75e9, 12.5, "train")
    if isinstance(content, Error):
        return make_message(metadata, error=content)
    return make_message(metadata, content=content)


@settings(max_examples=60)
@given(st.dictionaries(NAMES, RECORDS, max_size=4))
def test_content_of_any_kind_reads_back_as_protobuf_has_it(records):
    original = message(RecordDict(records))

    pulled = PullMessagesResponse.FromString(pull_response(original))

    assert pulled == PullMessagesResponse(messages_list=[message_to_proto(original)])


@pytest.mark.parametrize("content", [Error(2, "broken"), RecordDict({"a": ArrayRecord([np.zeros(70_000)])})])
def test_a_pushed_reply_keeps_its_envelope(content):
    envelope = PushMessagesRequest(node=Node(node_id=5), clientapp_runtime_list=[1.5])

    pushed = PushMessagesRequest.FromString(push_request(envelope, message(content)))

    envelope.messages_list.append(message_to_proto(message(content)))
    assert pushed == envelope
