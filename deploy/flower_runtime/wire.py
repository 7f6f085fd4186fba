"""Flower's records on the wire: generated protobuf modules, and what turns messages into them."""

from flwr.app.message import make_message, remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto, run_from_proto
from flwr.common.serde_utils import error_to_proto, metadata_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, recorddict_pb2, run_pb2
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict

__all__ = [
    "FleetStub",
    "Node",
    "NodeInfo",
    "ObjectTree",
    "PushMessagesRequest",
    "RecordDict",
    "error_to_proto",
    "fab_pb2",
    "fleet_pb2",
    "heartbeat_pb2",
    "make_message",
    "message_from_proto",
    "message_pb2",
    "message_to_proto",
    "metadata_to_proto",
    "recorddict_pb2",
    "recorddict_to_proto",
    "remove_content_from_message",
    "run_from_proto",
    "run_pb2",
]
