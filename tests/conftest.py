"""The strict mode: deterministic algorithms, one thread, a clean environment."""

import os
import signal

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


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("NUFED_"):
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(items):
    """Put the tests that start processes first: no core then waits for a long one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("system") is None)
