"""Flower's reading and checking of signatures."""

from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

__all__ = ["bytes_to_public_key", "verify_signature"]
