"""The strict mode: deterministic algorithms, one thread, a clean environment."""

import logging
import os
import shutil
import signal
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

# A shell's background job ignores Ctrl-C, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

# How long an example takes says how busy the machine is, not whether the code is right.
_UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("suite", _UNHURRIED)
settings.register_profile("fuzz", _UNHURRIED, max_examples=200)  # `make fuzz`, pass after pass (tests/fuzz)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def _deterministic_torch():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_ray():
    """Let `flwr run` and `--ray-address auto` find no other process's cluster: Ray leaves its address in a file."""
    folder = tempfile.mkdtemp(prefix="nufed-", dir="/tmp")  # paths of sockets are short
    os.environ["RAY_TMPDIR"] = folder
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _loggers_stay():
    """Refuse a test after which the loggers of this process, and so the tests after it, log something else."""
    logger = logging.getLogger("nufed")
    before = logger.level, logger.propagate, logger.disabled
    yield
    assert (logger.level, logger.propagate, logger.disabled) == before


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("NUFED_"):
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(items):
    """Put the tests that start processes first: no core then waits for a long one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("system") is None)
