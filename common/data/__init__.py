"""Where examples come from and how they are dealt to clients."""

from common.data.federation import describe_task, load_client, load_federation
from common.data.quadratic import quadratic_problems
from common.data.registry import SOURCES, Source

__all__ = ["SOURCES", "Source", "describe_task", "load_client", "load_federation", "quadratic_problems"]
