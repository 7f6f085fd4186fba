"""Flower's Ray actors."""

from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor

__all__ = ["BasicActorPool", "ClientAppActor"]
