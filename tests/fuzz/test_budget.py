"""The limits that every target keeps would be noticed."""

import contextlib

import numpy as np
import pytest

from nufed.common.errors import DataError
from tests.fuzz import budget
from tests.fuzz.budget import TooSlowError, limits


def hang():
    while True:
        with contextlib.suppress(Exception):  # what careless code does
            sum(range(1000))


def test_a_call_that_hangs_is_ended(monkeypatch):
    """Also where the code under test catches every Exception."""
    monkeypatch.setattr(budget, "SECONDS", 0.05)

    with pytest.raises(TooSlowError), limits():
        hang()


def test_a_call_that_takes_all_memory_is_ended():
    """Before the machine swaps."""
    with pytest.raises(MemoryError), limits():
        np.ones(budget.MEMORY // 4)  # twice the limit


def test_our_own_errors_pass_and_others_do_not():
    """A NufedError is an answer; anything else is a traceback."""
    with limits() as refused:
        raise DataError("expected")
    with pytest.raises(ValueError, match="other"), limits():
        raise ValueError("other")

    assert [str(error) for error in refused] == ["expected"]
