"""One run at a time in a process: the environment, and the names of given data, belong to the whole process."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from nufed.client.workplace import forget_workplaces
from nufed.common.data import forget_federations
from nufed.common.given import given
from nufed.common.metrics.judging import judging
from nufed.common.settings import exported
from nufed.common.tasks import find_task

_TURN = threading.RLock()


@contextmanager
def private(machine: Mapping[str, Any], objects: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Keep to the block what a run changes in the process; another thread waits until the block is over.

    Args:
        machine: options of the machine, which go into the environment.
        objects: data and models given in Python, by the names that the options have for them.
    """
    with _TURN:
        num_threads = torch.get_num_threads()
        with exported(**machine), given(objects or {}):
            try:
                yield
            finally:
                forget_workplaces()
                forget_federations()
                find_task.cache_clear()
                judging.cache_clear()  # which may hold functions of one name that use what has changed
                if torch.get_num_threads() != num_threads:
                    torch.set_num_threads(num_threads)
