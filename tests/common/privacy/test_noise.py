"""The noise is ⌊N(0, σ²)⌋, exactly, and nobody can compute it unless a test asks for that."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm

from nufed.common.errors import RunError
from nufed.common.privacy import noise
from nufed.common.privacy.noise import TEST_KEY_WARNING, RandomSource, grid_bits, noised_sum, random_source

BINS = 400


def source(*purpose):
    return RandomSource("fixed", *purpose)


@pytest.mark.parametrize("std", [2.0**27, 2.0**28 * 0.7, 1.37 * 2.0**20, 1.999 * 2.0**47])
def test_a_million_deviates_are_those_of_a_gaussian(std):
    drawn = source("ks").gaussian(1_000_000, std) / std

    assert kstest(drawn, norm.cdf).pvalue > 0.001
    counts, _ = np.histogram(norm.cdf(drawn), BINS, (0, 1))
    assert chisquare(counts).pvalue > 0.001
    tail = np.abs(drawn) > 4  # where a table or too few random bits would show
    assert abs(tail.sum() - 63.3) < 4 * np.sqrt(63.3)


@pytest.mark.parametrize("std", [0.4, 1.0, 3.3])
def test_each_step_of_a_coarse_grid_has_the_gaussians_own_probability(std):
    """Of ⌊N(0, σ²)⌋ these are differences of the distribution function, which SciPy computes."""
    number, counts = 400_000, Counter(source("cells").gaussian(400_000, std).tolist())
    steps = [step for step in range(-20, 20) if number * (norm.cdf(step + 1, 0, std) - norm.cdf(step, 0, std)) > 20]

    expected = np.array([norm.cdf(step + 1, 0, std) - norm.cdf(step, 0, std) for step in steps])

    seen = np.array([counts[step] for step in steps])
    assert seen.sum() > number * 0.999
    assert chisquare(seen, expected / expected.sum() * seen.sum()).pvalue > 0.001


def test_decimal_arithmetic_decides_as_float64_does_where_both_may(monkeypatch):
    """With a margin of 1, every point at the curve's edge is decided on as many bits as it takes."""
    fast = source("edge").gaussian(3000, 2.0**28)
    monkeypatch.setattr(noise, "_MARGIN", 1.0)
    decided = []
    exactly = noise._is_below
    monkeypatch.setattr(noise, "_is_below", lambda *args: decided.append(exactly(*args)) or decided[-1])

    slow = source("edge").gaussian(3000, 2.0**28)

    assert np.array_equal(fast, slow)
    assert 100 < len(decided) < 1500
    assert 0 < sum(decided) < len(decided)


def test_a_point_within_its_bits_of_the_curve_takes_further_bits():
    """At v = 0 the curve is 1, and the topmost box reaches to it: 52 bits of ones leave it open."""
    asked = []

    class Counting(RandomSource):
        def words(self, count):
            asked.append(count)
            return np.array([3, 2**62], dtype=np.uint64)  # just right of 0, and a quarter of a unit below the top

    assert not noise._is_below(Counting("k"), 2**46, 255, 2**52 - 1, 2.0**47)
    assert not asked
    height = int(np.exp(-0.5 * 0.25) * 256 * 2**52)  # of the curve at σ/2, to float64's precision
    noise._is_below(Counting("k"), 2**46, height >> 52, height & (2**52 - 1), 2.0**47)
    assert set(asked) <= {2}


def test_noise_is_not_repeatable_and_a_test_key_says_that_it_is(monkeypatch, caplog):
    assert random_source("round", 1).is_private
    assert random_source("round", 1).words(4).tolist() != random_source("round", 1).words(4).tolist()
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "known to all")

    first, again, other = (random_source("round", number).words(4).tolist() for number in (1, 1, 2))

    assert first == again != other
    assert not random_source("round", 1).is_private
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [TEST_KEY_WARNING]
    assert "NOT PRIVATE" in TEST_KEY_WARNING


def test_noise_is_added_to_a_sum_in_place_and_refused_where_it_cannot_be_drawn():
    integers = torch.arange(100_000)

    source("add").add_gaussian_(integers, 50.0)

    moved = (integers - torch.arange(100_000)).double()
    assert abs(moved.std().item() - 50) < 1
    for std in (0.0, -1.0, 2.0**48, float("nan")):
        with pytest.raises(RunError, match="coarser grid"):
            source("add").gaussian(1, std)


def test_bernoulli_draws_and_subsets_are_uniform():
    draws, few = source("choice"), Counter()
    assert draws.bernoulli(1.0, 5).all()
    assert not draws.bernoulli(0.0, 5).any()
    assert abs(draws.bernoulli(0.3, 100_000).sum() - 30_000) < 4 * np.sqrt(21_000)
    for _ in range(6000):
        few[tuple(draws.subset(4, 2))] += 1

    assert len(few) == 6
    assert chisquare(list(few.values())).pvalue > 0.001


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_noised_sum_of_floats_has_the_noise_of_its_clipping_length(dtype):
    sums = {"a": torch.full((300, 100), 2.0, dtype=dtype), "b": torch.zeros(3, dtype=dtype), "c": torch.zeros(0)}

    noised = noised_sum(sums, 0.5, 1.5, source("floats"))

    assert [tensor.dtype for tensor in noised.values()] == [dtype, dtype, torch.float32]
    assert kstest((noised["a"].double().flatten() - 2) / 0.75, norm.cdf).pvalue > (
        0.001 if dtype != torch.float16 else 0
    )
    if dtype == torch.float64:  # nothing beyond the grid: what float64 would have in its last bits
        assert ((noised["a"] * 2.0 ** grid_bits(0.5)).frac() == 0).all()


def test_a_sum_that_is_no_sum_of_clipped_terms_is_refused():
    for value in (float("nan"), float("inf"), 2.0**36):
        with pytest.raises(RunError, match="clipped to 1"):
            noised_sum({"a": torch.tensor([value])}, 1.0, 1.0, source("bad"))
