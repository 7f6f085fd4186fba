import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nufed.common.errors import ModelError, RunError, WireError
from nufed.common.fixed_point import DEFAULT_MAX_GROWTH, fixed_point_for
from nufed.strategy.aggregation import AGGREGATION_RULES, RunningMean, find_aggregation
from nufed.strategy.robust_options import RobustOptions
from nufed.strategy.server_step import ServerOptimizer, next_model


def mean_of(replies, weights=None, sent=None, **options):
    weights = weights or [1] * len(replies)
    mean = RunningMean(sent or replies[0], sum(weights), **options)
    for params, weight in zip(replies, weights, strict=True):
        mean.fold(params, weight)
    return mean.result()


def same_bits(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].numpy().tobytes() == second[name].numpy().tobytes()
        for name in first
    )


def wild(draw, dtype, size):
    """Return values of wildly different magnitudes, all of them within the limit for a model of magnitude 1."""
    mantissas = draw(st.lists(st.floats(-1, 1), min_size=size, max_size=size))
    exponents = draw(st.lists(st.integers(-60, 10), min_size=size, max_size=size))
    values = [math.ldexp(mantissa, exponent) for mantissa, exponent in zip(mantissas, exponents, strict=True)]
    return {"w": torch.tensor(values, dtype=dtype)}


@st.composite
def rounds(draw):
    """Draw a model sent, the replies to it, and their weights."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    num_clients, size = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    sent = {"w": torch.tensor(draw(st.lists(st.floats(-1, 1, width=32), min_size=size, max_size=size)), dtype=dtype)}
    replies = [wild(draw, dtype, size) for _ in range(num_clients)]
    weights = draw(st.lists(st.integers(1, 10**6), min_size=num_clients, max_size=num_clients))
    return sent, replies, weights


def test_the_uniform_mean_of_hand_made_numbers():
    replies = [
        {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(-3.0)},
        {"w": torch.tensor([2.0, 4.0]), "b": torch.tensor(1.0)},
    ]

    mean = mean_of(replies)

    assert mean["w"].tolist() == [1.5, 3.0]
    assert mean["b"].item() == -1.0
    assert mean["b"].shape == ()


def test_the_example_weighted_mean_of_hand_made_numbers():
    replies = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}]

    mean = mean_of(replies, [1, 5, 2])

    assert mean["w"].tolist() == [(1 + 10 + 8) / 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_mean_of_one_client_or_of_equal_clients_is_that_model(dtype):
    model = {"w": torch.linspace(-1, 1, 101, dtype=torch.float32).to(dtype)}

    assert same_bits(mean_of([model]), model)
    assert same_bits(mean_of([model] * 7, [3] * 7), model)
    torch.testing.assert_close(mean_of([model] * 7), model, rtol=0, atol=2**-48)


@pytest.mark.parametrize("rule", AGGREGATION_RULES)
def test_every_rule_is_blind_to_the_order_of_replies_and_stays_among_them(rule):
    generator = torch.Generator().manual_seed(0)
    replies = [{"w": torch.randn(50, generator=generator), "n": torch.tensor([k, 7])} for k in range(5)]

    def made_of(order):
        options = RobustOptions(num_attackers=1)
        aggregation = find_aggregation(rule)(replies[0], 6, DEFAULT_MAX_GROWTH, options)
        assert aggregation.result() is None
        for number in order:
            aggregation.fold(replies[number], client_id=str(number))
        with pytest.raises(WireError):
            aggregation.fold({"w": torch.full((50,), torch.nan), "n": torch.tensor([0, 7])}, client_id="5")
        return aggregation.result()

    found = made_of(range(5))
    assert same_bits(found, made_of([3, 1, 4, 0, 2]))
    every = torch.stack([reply["w"] for reply in replies])
    assert (every.amin(0) - 1e-6 <= found["w"]).all()
    assert (found["w"] <= every.amax(0) + 1e-6).all()
    assert found["n"].tolist() == [2, 7]


def test_nothing_folded_is_no_mean():
    assert RunningMean({"w": torch.zeros(2)}, 3).result() is None


@given(rounds(), st.randoms(use_true_random=False))
def test_the_mean_has_the_same_bits_in_whatever_order_replies_come(drawn, shuffler):
    sent, replies, weights = drawn
    order = list(range(len(replies)))
    shuffler.shuffle(order)

    mean = mean_of(replies, weights, sent)
    shuffled = mean_of([replies[i] for i in order], [weights[i] for i in order], sent)

    assert same_bits(mean, shuffled)


def test_a_floating_point_mean_would_depend_on_the_order():
    """The contrast that makes the property above mean something."""
    values = [torch.tensor(x, dtype=torch.float64) for x in (0.1, 0.2, 0.3)]

    assert (values[0] + values[1]) + values[2] != values[0] + (values[1] + values[2])
    models = [{"w": value} for value in values]
    assert same_bits(mean_of(models), mean_of(models[::-1]))


@given(rounds())
def test_the_mean_is_exact_but_for_the_grid_and_two_roundings(drawn):
    sent, replies, weights = drawn
    bits = fixed_point_for(sent["w"], sum(weights)).bits
    limit = 1024

    mean = mean_of(replies, weights, sent)["w"]

    for index, got in enumerate(mean.tolist()):
        exact = sum(
            Fraction(reply["w"][index].item()) * weight for reply, weight in zip(replies, weights, strict=True)
        ) / sum(weights)
        rounding = Fraction(torch.finfo(mean.dtype).eps) * abs(Fraction(got)) + Fraction(2) ** -1074
        float64_rounding = Fraction(2) ** -52 * limit
        assert (
            abs(Fraction(got) - exact) <= Fraction(2) ** -(bits + 1) + rounding + float64_rounding * Fraction(2) ** -9
        )


@given(rounds())
def test_the_mean_lies_between_the_smallest_and_the_largest_reply(drawn):
    sent, replies, weights = drawn
    step = 2.0 ** -fixed_point_for(sent["w"], sum(weights)).bits
    stacked = torch.stack([reply["w"] for reply in replies]).double()

    mean = mean_of(replies, weights, sent)["w"].double()

    slack = step + torch.finfo(replies[0]["w"].dtype).eps * mean.abs()
    assert (mean >= stacked.amin(0) - slack).all()
    assert (mean <= stacked.amax(0) + slack).all()


@given(rounds(), st.integers(2, 1000))
def test_the_scale_of_the_weights_does_not_matter_beyond_the_grid(drawn, scale):
    sent, replies, weights = drawn
    heavy = [scale * weight for weight in weights]
    step = 2.0 ** -fixed_point_for(sent["w"], sum(heavy)).bits

    plain, scaled = mean_of(replies, weights, sent)["w"], mean_of(replies, heavy, sent)["w"]

    torch.testing.assert_close(plain, scaled, rtol=2 * torch.finfo(plain.dtype).eps, atol=step)


def test_ten_clients_are_averaged_to_a_precision_of_2_to_the_minus_48():
    sent = {"w": torch.tensor([1.0])}

    assert fixed_point_for(sent["w"], 10).bits == 48
    assert fixed_point_for(sent["w"], 1).bits == 52
    assert fixed_point_for(sent["w"] * 3, 16).bits == 46


@pytest.mark.parametrize("num_clients", [1, 7, 1000])
@pytest.mark.parametrize("largest", [0.3, 1.0, 5.5, 1e18])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_sum_does_not_overflow_when_every_reply_is_at_the_limit(num_clients, largest, sign):
    sent = {"w": torch.full((3,), largest)}
    mean = RunningMean(sent, 10**6 * num_clients)
    reply = {"w": torch.full((3,), sign * mean.limits["w"])}

    for _ in range(num_clients):
        mean.fold(reply, 10**6)

    assert same_bits(mean.result(), reply)


def test_a_tensor_of_several_blocks_is_averaged_whole():
    generator = torch.Generator().manual_seed(0)
    replies = [{"w": torch.randn(3, 100_003, generator=generator)} for _ in range(3)]

    mean = mean_of(replies)

    expected = torch.stack([reply["w"] for reply in replies]).double().mean(0).float()
    torch.testing.assert_close(mean, {"w": expected}, rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 3e4])
@pytest.mark.parametrize("weights", [[1], [2, 5, 1]])
def test_blocks_have_the_bits_of_whole_numbers_rounded_half_to_even_whatever_their_magnitudes(dtype, scale, weights):
    """The sums of a few blocks are computed once more, in Python's integers; a reply refused at its end is in none."""
    generator = torch.Generator().manual_seed(1)
    size, total = 2**16 + 1000, sum(weights) + 1
    sent = {"w": (torch.rand(size, generator=generator) * scale).to(dtype), "v": torch.zeros(3, dtype=dtype)}
    bits = fixed_point_for(sent["w"], total).bits
    replies = [{name: values.clone() for name, values in sent.items()} for _ in weights]
    for number, reply in enumerate(replies):  # some blocks hold values on the grid, halves of it, or near the limit
        reply["w"][:4] = torch.tensor([0.5, -1.5, 2.5, 3.5]).double() * 2.0**-bits + number * 2.0**-bits
        reply["w"][-2:] *= -2 if dtype == torch.float16 else -900
    mean = RunningMean(sent, total)

    for reply, weight in zip(replies, weights, strict=True):
        bad = {"w": reply["w"], "v": torch.tensor([0, math.nan, 0], dtype=dtype)}
        for refused in (bad, {"w": torch.cat([reply["w"][:-1], bad["v"][1:2]]), "v": sent["v"]}):
            with pytest.raises(WireError, match="contains NaN"):
                mean.fold(refused, weight)
        mean.fold(reply, weight)

    places = [*range(20), *range(2**15 - 3, 2**15 + 3), *range(size - 20, size)]
    grid = Fraction(2) ** bits
    sums = [
        sum(w * round(Fraction(reply["w"][at].item()) * grid) for reply, w in zip(replies, weights, strict=True))
        for at in places
    ]
    expected = torch.tensor(sums).double().div(sum(weights)).mul(2.0**-bits).to(dtype)
    assert torch.equal(mean.result()["w"][places], expected)
    assert torch.equal(mean.result()["v"], sent["v"])


def test_each_tensor_has_a_grid_and_a_limit_of_its_own():
    sent = {"small": torch.tensor([0.5]), "large": torch.tensor([5000.0])}

    mean = RunningMean(sent, 4)

    assert mean.limits == {"small": 1024.0, "large": 8192 * 1024.0}


def test_integer_counters_keep_their_type_and_are_rounded_half_to_even():
    replies = [{"n": torch.tensor([10, -3, 7])}, {"n": torch.tensor([13, -4, 7])}]

    mean = mean_of(replies)

    assert mean["n"].dtype == torch.int64
    assert mean["n"].tolist() == [12, -4, 7]


def test_integer_counters_are_weighted():
    mean = mean_of([{"n": torch.tensor([10])}, {"n": torch.tensor([20])}], [1, 4])

    assert mean["n"].tolist() == [18]


def test_flags_are_averaged_by_majority():
    replies = [
        {"f": torch.tensor([True, False])},
        {"f": torch.tensor([True, True])},
        {"f": torch.tensor([True, False])},
    ]

    mean = mean_of(replies)

    assert mean["f"].tolist() == [True, False]


def test_half_precision_is_scaled_where_its_own_range_would_overflow():
    replies = [{"w": torch.tensor([0.1, 60000.0], dtype=torch.float16)} for _ in range(3)]

    assert same_bits(mean_of(replies), replies[0])


def test_an_empty_tensor_stays_empty():
    assert mean_of([{"w": torch.zeros(0, 4)}] * 2)["w"].shape == (0, 4)


BAD = {
    "NaN": ({"w": torch.tensor([1.0, math.nan]), "b": torch.ones(1)}, "NaN or infinite"),
    "Inf": ({"w": torch.tensor([1.0, math.inf]), "b": torch.ones(1)}, "NaN or infinite"),
    "too large": ({"w": torch.tensor([1.0, -1025.0]), "b": torch.ones(1)}, "beyond the limit"),
    "second array": ({"w": torch.ones(2), "b": torch.tensor([math.nan])}, "'b' contains NaN"),
    "shape": ({"w": torch.ones(2, 1), "b": torch.ones(1)}, "shape"),
    "type": ({"w": torch.ones(2, dtype=torch.float64), "b": torch.ones(1)}, "type"),
    "missing": ({"w": torch.ones(2)}, "missing"),
    "extra": ({"w": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}, "not expected"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_a_refused_reply_leaves_the_mean_as_it_was(bad, reason):
    sent = {"w": torch.ones(2), "b": torch.ones(1)}
    good = {"w": torch.tensor([3.0, 5.0]), "b": torch.tensor([2.0])}
    mean = RunningMean(sent, 3)
    mean.fold(good)

    with pytest.raises(WireError, match=reason):
        mean.fold(bad)

    mean.fold(good)
    assert mean.weight == 2
    assert same_bits(mean.result(), good)


def test_neither_the_model_sent_nor_the_replies_are_changed():
    sent, first, second = ({"w": torch.full((4,), value)} for value in (1.0, 2.0, 3.0))

    mean_of([first, second], sent=sent)

    assert [p["w"].tolist() for p in (sent, first, second)] == [[1.0] * 4, [2.0] * 4, [3.0] * 4]


@pytest.mark.parametrize("weight", [0, -1, 6])
def test_a_weight_beyond_the_bound_is_refused(weight):
    mean = RunningMean({"w": torch.zeros(1)}, 7)
    mean.fold({"w": torch.zeros(1)}, 2)

    with pytest.raises(RunError, match="from 1 to 5"):
        mean.fold({"w": torch.zeros(1)}, weight)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (torch.tensor([math.nan]), "finite"),
        (torch.tensor([math.inf]), "finite"),
        (torch.tensor([1j]), "real"),
        (torch.tensor([2**61]), "counter"),
    ],
)
def test_a_model_that_cannot_be_averaged_is_refused_before_the_round(sent, reason):
    with pytest.raises(ModelError, match=reason):
        RunningMean({"w": sent}, 10)


@settings(max_examples=30)
@given(st.floats(1, 1e6))
def test_the_growth_allowed_is_at_least_what_was_asked(growth):
    mean = RunningMean({"w": torch.ones(1)}, 2, growth)

    assert growth <= mean.limits["w"] < 2 * growth or growth == mean.limits["w"]


def test_the_default_limit_is_1024_times_the_model():
    assert DEFAULT_MAX_GROWTH == 1024
    assert RunningMean({"w": torch.tensor([0.01])}, 1).limits["w"] == 1024


def test_float32_values_that_lie_on_the_grid_are_added_without_any_rounding():
    rng = np.random.default_rng(0)
    values = [torch.from_numpy(rng.uniform(2**-24, 1, 1000).astype(np.float32)) for _ in range(10)]

    mean = mean_of([{"w": value} for value in values], sent={"w": torch.ones(1000)})["w"]

    exact = [float(np.float32(sum(Fraction(v[i].item()) for v in values) / 10)) for i in range(1000)]
    assert mean.tolist() == exact


def test_a_server_step_rounds_integers_to_the_nearest():
    sent, mean = {"count": torch.tensor([10, -10])}, {"count": torch.tensor([13, -13])}

    moved, _ = next_model(sent, mean, 0.9, ServerOptimizer(), {})

    assert moved["count"].tolist() == [13, -13]  # 12.7, where truncation gives 12
