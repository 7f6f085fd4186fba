"""Warnings about numbers: said once each, however many clients and steps they concern."""

import warnings
from functools import lru_cache


class Caution(UserWarning):
    """Something the run goes on with, but that its reader must know."""


@lru_cache(maxsize=1024)
def caution(message: str) -> None:
    """Warn of something once in this process."""
    warnings.warn(message, Caution, stacklevel=3)
