"""Flower's constants, errors and small types."""

from flwr.app.user_config import UserConfig
from flwr.common.constant import (
    HEARTBEAT_MAX_INTERVAL,
    HEARTBEAT_MIN_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    NUM_PARTITIONS_KEY,
    PARTITION_ID_KEY,
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    SUPERLINK_NODE_ID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    ErrorCode,
    Status,
    SubStatus,
)
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.date import now
from flwr.supercore.error import ApiErrorCode, FlowerError, rpc_error_translator
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.utils import get_metadata_bytes, get_metadata_str

__all__ = [
    "FLWR_IN_MEMORY_DB_NAME",
    "HEARTBEAT_MAX_INTERVAL",
    "HEARTBEAT_MIN_INTERVAL",
    "NOOP_ACCOUNT_NAME",
    "NOOP_FEDERATION_ID",
    "NOOP_FLWR_AID",
    "NUM_PARTITIONS_KEY",
    "PARTITION_ID_KEY",
    "PUBLIC_KEY_HEADER",
    "SIGNATURE_HEADER",
    "SUPERLINK_NODE_ID",
    "SYSTEM_TIME_TOLERANCE",
    "TIMESTAMP_HEADER",
    "TIMESTAMP_TOLERANCE",
    "ApiErrorCode",
    "ErrorCode",
    "Fab",
    "FlowerError",
    "NodeStatus",
    "Run",
    "Status",
    "SubStatus",
    "TaskIdentity",
    "TaskType",
    "UserConfig",
    "get_metadata_bytes",
    "get_metadata_str",
    "now",
    "rpc_error_translator",
]
