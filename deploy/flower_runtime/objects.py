"""Flower's objects, which stock peers send messages as."""

from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_id,
    get_object_tree,
    is_valid_sha256_hash,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_and_inflate_object_from_tree,
    push_objects,
)

__all__ = [
    "ObjectPullError",
    "ObjectPushError",
    "ObjectUnavailableError",
    "get_all_nested_objects",
    "get_object_body",
    "get_object_head_values_from_object_content",
    "get_object_id",
    "get_object_tree",
    "inflate_object_from_contents",
    "is_valid_sha256_hash",
    "iterate_object_tree",
    "no_object_id_recompute",
    "pull_and_inflate_object_from_tree",
    "push_objects",
]
