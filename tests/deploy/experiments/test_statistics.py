"""Statistics of experiments against numbers worked out by hand or by another route."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nufed.deploy.experiments.statistics import (
    Corrected,
    Differences,
    Grain,
    censored_median,
    holm,
    spread,
    t_interval,
    two_stage_bootstrap,
    worst_decile,
)
from nufed.deploy.experiments.wording import difference, judgement

finite = st.floats(-1e3, 1e3)


def test_an_interval_of_four_observations_is_the_one_worked_out_by_hand():
    # mean 2.5, sd √(5/3), t_{0.975, 3} = 3.182446: reach 3.182446 · 1.290994 / 2
    interval = t_interval([1.0, 2.0, 3.0, 4.0])

    assert interval.mean == 2.5
    assert interval.half_width == pytest.approx(2.054260, abs=1e-6)
    assert interval.p_value == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0, 4.0], 0).pvalue)


def test_one_observation_has_no_finite_interval():
    interval = t_interval([0.7])

    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert not interval.excludes_zero
    assert math.isnan(interval.p_value)


def test_a_diverged_observation_makes_the_interval_nan_and_never_significant():
    interval = t_interval([0.5, math.nan, 0.7])

    assert math.isnan(interval.low)
    assert not interval.excludes_zero


def test_two_observations_have_a_spread_and_no_interval():
    interval = t_interval([0.006, 0.006])

    assert (interval.low, interval.high, interval.least, interval.most) == (-math.inf, math.inf, 0.006, 0.006)
    assert math.isnan(interval.p_value)
    assert judgement(Corrected(interval, math.nan)) == "no verdict: 2 seeds"
    assert difference(interval, "accuracy") == "+0.6 points (seeds +0.6 to +0.6)"


def test_the_same_example_on_every_seed_is_worth_one_example_and_no_certainty():
    """Three differences of one example: mean g, sd at least g, t = √3 with two degrees of freedom."""
    interval = t_interval([0.006] * 3, grain=Grain(0.006))

    assert interval.p_value == pytest.approx(2 * stats.t.sf(math.sqrt(3), 2))
    assert interval.half_width == pytest.approx(4.302653 * 0.006 / math.sqrt(3), rel=1e-6)
    assert not interval.excludes_zero
    assert t_interval([0.06] * 3, grain=Grain(0.006)).excludes_zero  # ten examples on each


def test_equal_observations_that_are_not_counted_allow_no_verdict():
    """As of runs that a seed does not change: they are one observation and no three."""
    interval = t_interval([0.25, 0.25, 0.25 + 1e-9], grain=Grain(rounding=1e-7))

    assert not interval.excludes_zero
    assert judgement(Corrected(interval, math.nan)) == "no verdict: all seeds equal"
    assert t_interval([0.0] * 4).p_value == 1.0
    assert judgement(Corrected(t_interval([0.0] * 4), 1.0)) == "no difference shown"


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("changed", [0.01, 0.1, 0.4])
def test_where_nothing_differs_verdicts_are_at_most_as_frequent_as_they_may_be(seeds, changed):
    """One client of 20 test examples, on a share of which two equally good models differ either way.

    20,000 experiments of one comparison; the binomial noise of a rate of 5 % is 0.15 %, three times of which are
    granted. Without a floor, two or three seeds with the same example are `better`: up to 11 % of the experiments.
    """
    rng = np.random.default_rng(0)
    flips = rng.binomial(20, changed, (20_000, seeds))
    found = (2 * rng.binomial(flips, 0.5) - flips) / 20

    kinds, counts = np.unique(np.sort(found, axis=1), axis=0, return_counts=True)
    wrong = sum(
        count
        for values, count in zip(kinds, counts, strict=True)
        if t_interval(list(values), grain=Grain(1 / 20)).excludes_zero
    )

    assert wrong / len(found) <= 0.05 + 3 * 0.0015
    assert seeds > 2 or wrong == 0


@given(st.lists(finite, min_size=3, max_size=8), finite)
def test_moving_all_observations_moves_the_interval(values, shift):
    grain = Grain(0.1)
    before, after = t_interval(values, grain=grain), t_interval([value + shift for value in values], grain=grain)

    assert after.low == pytest.approx(before.low + shift, abs=1e-6)
    assert after.high == pytest.approx(before.high + shift, abs=1e-6)


def test_an_interval_is_that_of_students_t():
    interval = t_interval([0.02, 0.03, 0.01])

    # mean 0.02, sd 0.01, t_{0.975, 2} = 4.302653
    assert interval.mean == pytest.approx(0.02)
    assert interval.half_width == pytest.approx(4.302653 * 0.01 / math.sqrt(3), abs=1e-7)


def seeds(*values):
    return dict(enumerate(values))


def test_holm_adjusts_as_worked_out_by_hand():
    differences = {
        "strong": seeds(1.0, 1.1, 0.9, 1.05, 0.95),
        "weak": seeds(0.5, -0.1, 0.6, 0.1, 0.4),
        "none": seeds(0.2, -0.3, 0.1, -0.1, 0.05),
    }
    plain = {name: t_interval(list(values.values())).p_value for name, values in differences.items()}

    corrected = holm(differences)

    assert list(corrected) == ["strong", "weak", "none"]
    assert corrected["strong"].p_adjusted == pytest.approx(3 * plain["strong"])
    assert corrected["weak"].p_adjusted == pytest.approx(2 * plain["weak"])
    assert corrected["none"].p_adjusted == pytest.approx(max(2 * plain["weak"], plain["none"]))


def test_holm_shows_everything_after_the_first_that_fails_at_its_level():
    # Alone "late" would be significant at its own level 0.05, but "early" (rank 1) fails at 0.025.
    differences = {
        "first": seeds(1.0, 1.1, 0.9, 1.05, 0.95),
        "early": seeds(1.0, 0.2, 0.9, 0.1, 0.7),
        "late": seeds(1.0, 0.2, 0.9, 0.1, 0.68),
    }
    order = sorted(differences, key=lambda name: t_interval(list(differences[name].values())).p_value)

    corrected = holm(differences)

    for name in order[1:]:
        expected = t_interval(list(differences[name].values()), 0.975)
        assert corrected[name].interval.low == pytest.approx(expected.low)


@given(st.lists(st.lists(st.floats(-1, 1), min_size=5, max_size=5), min_size=1, max_size=5))
def test_a_corrected_interval_excludes_zero_exactly_where_holm_rejects(rows):
    differences = {str(index): seeds(*row) for index, row in enumerate(rows)}

    corrected = holm(differences)

    for each in corrected.values():
        if abs(each.p_adjusted - 0.05) > 1e-9:
            assert each.interval.excludes_zero == (each.p_adjusted < 0.05)


def test_the_bootstrap_covers_what_it_estimates_and_is_repeatable():
    rng = np.random.default_rng(0)
    values = [rng.normal(loc, 1.0, 40) for loc in (0.0, 0.2, -0.1, 0.1, 0.05)]

    first = two_stage_bootstrap(values, spread, num_draws=400)
    again = two_stage_bootstrap(values, spread, num_draws=400)

    assert first == again
    assert first.low < 1.0 < first.high
    assert first.mean == pytest.approx(np.mean([each.std(ddof=1) for each in values]))


@pytest.mark.parametrize("statistic", [spread, worst_decile])
def test_the_bootstrap_is_that_of_drawing_seeds_and_then_their_clients_one_by_one(statistic):
    """Seeds of different sizes; both ends of the interval agree to the noise of 4,000 draws."""
    rng = np.random.default_rng(1)
    values = [rng.normal(loc, 1.0, num) for loc, num in ((0.0, 12), (1.0, 25), (2.0, 7))]
    one_by_one = np.empty(4000)
    for draw in range(len(one_by_one)):
        seeds = rng.integers(0, 3, 3)
        one_by_one[draw] = np.mean([statistic(rng.choice(values[each], len(values[each]))) for each in seeds])

    interval = two_stage_bootstrap(values, statistic, num_draws=4000)

    assert [interval.low, interval.high] == pytest.approx(np.quantile(one_by_one, [0.025, 0.975]), abs=0.1)


def test_the_bootstrap_of_equal_clients_reaches_as_far_as_one_example():
    interval = two_stage_bootstrap([np.full(7, 0.3)] * 3, worst_decile, num_draws=50, grain=0.1)

    assert (interval.low, interval.high) == (pytest.approx(0.2), pytest.approx(0.4))


@pytest.mark.parametrize(
    "values",
    [
        [np.array([0.3, 0.5])] * 2,  # two seeds
        [np.array([0.3]), np.array([0.4]), np.array([0.5])],  # one client, whom every draw takes
        [np.full(7, 0.3)] * 3,  # nothing that could differ, and no example that is counted
    ],
)
def test_there_is_no_bootstrap_interval_where_draws_say_nothing(values):
    interval = two_stage_bootstrap(values, worst_decile, num_draws=50)

    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert interval.mean == pytest.approx(np.mean([value.min() for value in values]))


def test_holm_gives_each_difference_its_own_floor_and_two_seeds_no_verdict():
    corrected = holm(
        {
            "one example": Differences(seeds(0.02, 0.02, 0.02), Grain(0.02)),
            "many": Differences(seeds(0.5, 0.5, 0.5), Grain(0.02)),
            "short": Differences(seeds(0.5, 0.5), Grain(0.02)),
        }
    )

    assert [judgement(each) for each in corrected.values()] == ["no difference shown", "better", "no verdict: 2 seeds"]
    assert math.isnan(corrected["short"].p_adjusted)


def test_the_worst_decile_of_eleven_clients_is_the_mean_of_two():
    assert worst_decile(np.array([0.9, 0.1, 0.5, 0.3, *[1.0] * 7])) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("values", "median", "text"),
    [
        ([10, 20, 30], 20, "20 (10 to 30)"),
        ([10, 20, None], 20, "20 (10 to > 60)"),
        ([10, None, None], math.inf, "> 60 (10 to > 60)"),
        ([None, None], math.inf, "> 60"),
        ([10, 20, 30, None], 25, "25 (10 to > 60)"),
        ([0, 0], 0, "0"),
    ],
)
def test_runs_that_did_not_reach_the_target_count_as_longer_than_any(values, median, text):
    censored = censored_median(values)

    assert censored.median == median
    assert censored.text(60) == text
    assert censored.num_reached == sum(value is not None for value in values)


def test_a_corrected_p_value_is_never_below_that_of_a_stronger_difference():
    """Two p-values that are nearly one: the second, times one test less, would come out below the first."""
    strong, weak = [1.0, 1.1, 0.9, 1.05], [1.0, 1.1, 0.9, 1.06]

    corrected = holm({name: dict(enumerate(values)) for name, values in {"a": strong, "b": weak}.items()})

    raw = {name: each.interval.p_value for name, each in corrected.items()}
    first, second = sorted(raw, key=raw.get)
    assert raw[second] < 2 * raw[first]
    assert corrected[second].p_adjusted == corrected[first].p_adjusted == pytest.approx(2 * raw[first])
