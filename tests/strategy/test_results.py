import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.errors import RunError
from nufed.strategy.results import Averages, Counts, average


def test_counts_that_do_not_add_up_are_a_defect():
    with pytest.raises(RunError, match="sampled = replied"):
        Counts(sampled=5, replied=3, rejected=1, failed=0, missing=0)


def test_metrics_are_averaged_over_clients_or_over_examples():
    metrics = {"a": {"num-examples": 1, "loss": 1.0}, "b": {"num-examples": 3, "loss": 2}}

    assert average(metrics, "uniform").numbers == {"loss": 1.5}
    assert average(metrics, "examples").numbers == {"loss": 1.75}


def test_curves_of_one_length_are_averaged_step_by_step():
    metrics = {"a": {"num-examples": 1, "curve": [1.0, 3.0]}, "b": {"num-examples": 3, "curve": [2, 5]}}

    assert average(metrics, "uniform") == Averages({}, {"curve": [1.5, 4.0]})
    assert average(metrics, "examples").curves == {"curve": [1.75, 4.5]}


@pytest.mark.parametrize("odd", [{}, {"loss": [1.0]}, {"loss": []}], ids=["missing", "list", "empty list"])
def test_a_metric_that_one_client_reports_otherwise_is_left_out_for_all(odd):
    metrics = {
        "a": {"num-examples": 1, "loss": 1.0, "time": 2.0},
        "b": {"num-examples": 1, "time": 4.0, "mine": 7, **odd},
    }

    assert average(metrics, "uniform") == Averages({"time": 3.0}, {})


def test_curves_of_different_lengths_are_left_out():
    metrics = {"a": {"num-examples": 1, "curve": [1.0, 3.0]}, "b": {"num-examples": 1, "curve": [2.0]}}

    assert average(metrics, "uniform") == Averages()


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_one_client_that_diverged_does_not_take_the_others_mean_away(odd):
    metrics = {
        "a": {"num-examples": 1, "loss": 2.0, "c": [1.0, 3.0]},
        "b": {"num-examples": 9, "loss": odd, "c": [3.0, odd]},
    }

    for weighting in ("uniform", "examples"):
        assert average(metrics, weighting).numbers == {"loss": 2.0}
        assert average(metrics, weighting).curves["c"][1] == 3.0
    assert math.isnan(average({"b": metrics["b"]}, "uniform").numbers["loss"])


def test_in_averages_over_examples_a_client_weighs_ten_times_the_median_at_most():
    metrics = {
        name: {"num-examples": n, "loss": loss}
        for name, n, loss in (("a", 10, 0.0), ("b", 10, 0.0), ("c", 2**31 - 1, 6.0))
    }

    assert average(metrics, "examples").numbers == {"loss": 6.0 * 100 / 120}
    assert average(metrics, "examples", 1).numbers == {"loss": 2.0}


def test_there_are_no_averages_without_clients_or_without_examples():
    assert average({}, "uniform") == Averages()
    assert average({"a": {"num-examples": 0, "loss": 1.0}}, "examples") == Averages()
    assert average({"a": {"num-examples": 0, "loss": 1.0}}, "uniform").numbers == {"loss": 1.0}


@given(st.lists(st.tuples(st.floats(), st.integers(0, 2**31 - 1)), min_size=1, max_size=6), st.randoms())
def test_averages_do_not_depend_on_who_answered_first(replies, shuffler):
    entries = [(f"c{i}", {"num-examples": n, "loss": loss}) for i, (loss, n) in enumerate(replies)]
    shuffled = entries.copy()
    shuffler.shuffle(shuffled)

    for weighting in ("uniform", "examples"):
        assert repr(average(dict(entries), weighting)) == repr(average(dict(shuffled), weighting))
