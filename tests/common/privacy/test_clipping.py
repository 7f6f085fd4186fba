"""However a client's model looks, its integers are no longer than C; a short update is not changed."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nufed.common.errors import ConfigError, DivergedError, WireError
from nufed.common.privacy.clipping import ClippedUpdateEncoding, update_length

DTYPES = {torch.float16: 6e4, torch.bfloat16: 1e38, torch.float32: 3e38, torch.float64: 1e300}


@st.composite
def models(draw):
    """A model sent and one that came back: of all sizes, near overflow, denormal, mixed."""
    sent, reply = {}, {}
    for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True)):
        dtype = draw(st.sampled_from(list(DTYPES)))
        largest = DTYPES[dtype]
        values = st.one_of(
            st.floats(-largest, largest),
            st.floats(-1, 1),
            st.floats(-1e-310, 1e-310),
            st.sampled_from([largest, -largest, 0.0]),
        )
        size = draw(st.integers(0, 5))
        for model in (sent, reply):
            model[name] = torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.float64).to(
                dtype
            )
    return sent, reply


def exact_square(sums):
    return sum(value * value for tensor in sums.values() for value in tensor.tolist())


@settings(max_examples=300, deadline=None)
@given(models(), st.floats(1e-9, 1e9))
def test_no_client_is_longer_than_the_clipping_length_in_the_sum(pair, clip):
    """Squares are added as whole numbers, without rounding."""
    sent, reply = pair
    encoding = ClippedUpdateEncoding(sent, clip, 1)
    sums = {}

    encoding.add(sums, reply)

    assert exact_square(sums) <= (Fraction(clip) * Fraction(2) ** encoding.bits) ** 2


@settings(max_examples=100, deadline=None)
@given(models())
def test_a_short_update_goes_into_the_sum_as_it_is(pair):
    sent, reply = pair
    length = math.hypot(*(float(x) for name in sent for x in (reply[name].double() - sent[name].double()).tolist()))
    assert update_length(sent, reply) == pytest.approx(length, rel=1e-12)
    clip = min(max(1.01 * length, 1e-9), 1e9)
    encoding = ClippedUpdateEncoding(sent, clip, 1)
    sums = {}

    encoding.add(sums, reply)

    if 1.01 * length <= clip:
        for name, tensor in sums.items():
            expected = (reply[name].double() - sent[name].double()) * 2.0**encoding.bits
            assert torch.equal(tensor, expected.trunc().long())


def test_a_long_update_keeps_its_direction_and_almost_the_whole_length():
    sent = {"a": torch.zeros(200_000), "b": torch.ones(3, 4, dtype=torch.float64)}
    reply = {"a": torch.linspace(-5, 9, 200_000), "b": sent["b"] * 7}
    encoding, sums = ClippedUpdateEncoding(sent, 0.3, 4.0), {}

    encoding.add(sums, reply)
    mean = encoding.mean(sums)

    length = update_length(sent, reply)
    assert math.sqrt(exact_square(sums)) / 2.0**encoding.bits == pytest.approx(0.3, rel=1e-5)
    assert torch.allclose(mean["b"] - 1, (reply["b"] - 1) * 0.3 / length / 4, rtol=1e-4)
    assert mean["a"].dtype == torch.float32
    assert mean["b"].shape == (3, 4)


def test_counters_keep_their_values_and_are_in_no_length():
    sent = {"w": torch.zeros(2), "steps": torch.tensor([3])}
    encoding, sums = ClippedUpdateEncoding(sent, 1.0, 1), {}

    encoding.add(sums, {"w": torch.ones(2) * 0.5, "steps": torch.tensor([1000])})

    assert sums.keys() == {"w"}
    assert torch.equal(encoding.mean(sums)["steps"], sent["steps"])


def test_what_is_no_finite_model_is_refused_and_what_leaves_a_type_ends_the_run():
    sent = {"w": torch.zeros(2, dtype=torch.float16)}
    encoding = ClippedUpdateEncoding(sent, 1e9, 1)

    for bad in (math.nan, math.inf):
        with pytest.raises(WireError):
            encoding.add({}, {"w": torch.full((2,), bad, dtype=torch.float16)})
    with pytest.raises(DivergedError, match=r"float16.*'w'"):
        encoding.mean({"w": torch.tensor([2**40, 0])})
    for clip, denominator in ((0.0, 1), (math.nan, 1), (1e10, 1), (1.0, 0.0), (1.0, math.inf)):
        with pytest.raises(ConfigError):
            ClippedUpdateEncoding(sent, clip, denominator)
