"""What the server does with replies: choice of clients, aggregation and the Flower Strategy."""

from nufed.strategy.meta_fedavg import MetaFedAvg

__all__ = ["MetaFedAvg"]
