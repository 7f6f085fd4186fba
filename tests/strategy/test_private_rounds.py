"""Rounds with client-level differential privacy, by any loop: what a client changes, who is drawn, what is charged."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest, norm

from nufed.common.errors import BudgetSpentError, ConfigError, DivergedError, RunError
from nufed.common.model_arrays import arrays_to_params, params_to_arrays
from nufed.common.models.frozen import hash_of
from nufed.common.privacy.accounting import SampledGaussian, epsilon
from nufed.common.privacy.ledger import PrivacyLedger
from nufed.common.privacy.noise import RandomSource
from nufed.common.privacy.terms import ClientTerms, client_terms, most_clients
from nufed.strategy import MetaFedAvg
from nufed.strategy.participation import poisson_choice
from nufed.strategy.private_mean import PrivateMean
from nufed.strategy.private_rounds import ClientPrivacy
from tests.strategy.fake_grid import FakeGrid, client, error_reply, received, reply

SENT = {"w": torch.linspace(-1, 1, 20_000), "b": torch.tensor(0.5, dtype=torch.float64)}
TERMS = ClientTerms(clip=2.0, noise=0.5, rate=1.0, num_clients=4, cohort_cap=0, delta=1e-3)


def strategy(terms=TERMS, **options):
    privacy = {name: options.pop(name) for name in ("epsilon", "ledger") if name in options}
    return MetaFedAvg(participation_fraction=terms.rate, privacy=ClientPrivacy(terms, **privacy), **options)


def federation(*nodes):
    return FakeGrid({100 + number: node for number, node in enumerate(nodes)})


def terms_with(**changes):
    return ClientTerms(**{**vars(TERMS), **changes})


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=5), st.floats(-1e38, 1e38), st.sampled_from([1e-3, 1.0, 50.0])
)
def test_one_client_moves_the_noiseless_sum_by_no_more_than_the_clipping_length(others, own, clip):
    sent = {"a": torch.tensor([0.25, -3.0]), "b": torch.zeros(3, dtype=torch.float64)}
    sums = []
    for steps in (others, [*others, own]):
        mean = PrivateMean(sent, terms_with(clip=clip), RandomSource())
        for step in steps:
            mean.fold({name: tensor + step for name, tensor in sent.items()})
        sums.append({name: total.clone() for name, total in mean._sums.items()})

    moved = sum(int(x) ** 2 for name in sent for x in (sums[1][name] - sums[0][name]))
    assert moved <= (clip * 2.0**mean.encoding.bits) ** 2


def test_the_mean_of_clipped_updates_has_a_fixed_denominator_and_missing_clients_are_zeros(monkeypatch):
    """One update is too long, one short, one client fails; the noise is that of a round without updates."""
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "fixed")
    long = client("a", step=1.0)  # of length 141 and more, clipped to 2
    short = client(
        "b", train=lambda m: reply(m, {"w": received(m)["w"], "b": received(m)["b"] + 1.5}, {"num-examples": 999})
    )
    broken = client("c", train=error_reply)
    bad = client(
        "d", train=lambda m: reply(m, {"w": received(m)["w"] * np.nan, "b": received(m)["b"]}, {"num-examples": 1})
    )

    empty = strategy(terms_with(num_clients=8)).train_round(federation(broken), SENT, 1, timeout=5).params
    result = strategy(terms_with(num_clients=8)).train_round(federation(long, short, broken, bad), SENT, 1, timeout=5)

    length = math.sqrt(20_001)
    assert vars(result.counts) == {"sampled": 4, "replied": 2, "rejected": 1, "failed": 1, "missing": 0, "dropped": 0}
    torch.testing.assert_close(result.params["w"], empty["w"] + 2 / length / 8, atol=1e-6, rtol=0)
    torch.testing.assert_close(result.params["b"], empty["b"] + (1.5 + 2 / length) / 8, atol=1e-6, rtol=0)


@pytest.mark.parametrize("nodes", [[client("a", train=error_reply)], [client("a", step=0.0), client("b", step=0.0)]])
def test_noise_has_the_stated_distribution_whoever_answers(nodes, monkeypatch):
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "fixed")

    result = strategy().train_round(federation(*nodes), SENT, 1, timeout=5)

    noise = (result.params["w"] - SENT["w"]).double() / (0.5 * 2.0 / 4)
    assert kstest(noise, norm.cdf).pvalue > 0.001


def test_a_round_in_which_nobody_is_drawn_is_noised_and_charged():
    terms = terms_with(rate=1e-3)
    rounds = strategy(terms)

    result = rounds.train_round(federation(client("a"), client("b")), SENT, 1, timeout=5)

    assert result.counts.sampled == 0
    assert not torch.equal(result.params["w"], SENT["w"])
    assert [charge.round for charge in rounds.private.ledger.charges] == [1]


def test_the_server_step_comes_after_the_noise(monkeypatch):
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "fixed")
    whole, half = (
        strategy(server_lr=size).train_round(federation(client("a")), SENT, 1, timeout=5).params for size in (1.0, 0.5)
    )

    torch.testing.assert_close(half["w"] - SENT["w"], (whole["w"] - SENT["w"]) / 2, atol=1e-6, rtol=0)


def test_rounds_of_one_seed_differ_and_under_a_test_key_they_repeat(monkeypatch):
    def run():
        found = strategy(terms_with(rate=0.5), seed=7).start(
            federation(*(client(f"c{number}") for number in range(9))), params_to_arrays(SENT), 2, timeout=5
        )
        return {name: array.data for name, array in found.arrays.items()}

    assert run() != run()
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "fixed")
    assert run() == run()


def test_participation_is_poisson_and_capped(monkeypatch):
    source, ids = RandomSource("fixed"), [f"c{number}" for number in range(20)]

    sizes, taking_part, capped = Counter(), Counter(), Counter()
    for _ in range(4000):
        chosen = poisson_choice(ids, 0.2, most=0, source=source)
        sizes[len(chosen)] += 1
        taking_part.update(chosen)
        few = poisson_choice(ids, 0.2, most=5, source=source)
        capped[len(few)] += 1
        assert list(few) == sorted(set(few))

    binomial = [math.comb(20, k) * 0.2**k * 0.8 ** (20 - k) for k in range(21)]
    common = range(1, 9)
    seen = np.array([sizes[k] for k in common])
    assert (
        chisquare(seen, np.array([binomial[k] for k in common]) / sum(binomial[k] for k in common) * seen.sum()).pvalue
        > 1e-3
    )
    assert chisquare(list(taking_part.values())).pvalue > 1e-3
    assert max(capped) == 5
    assert abs(capped[5] / 4000 - sum(binomial[5:])) < 0.03
    assert most_clients(40, 0.5, 2.0) == 0
    assert most_clients(1000, 0.1, 2.0) == 200
    with pytest.raises(RunError, match="1 asks every client"):
        poisson_choice(ids, 0.0, most=0, source=source)


def test_each_round_is_charged_by_what_it_was_and_epsilon_is_told(tmp_path):
    terms = ClientTerms(clip=1.0, noise=1.0, rate=0.5, num_clients=3, cohort_cap=3, delta=1e-2)
    path = tmp_path / "privacy.jsonl"
    grid = federation(*(client(f"c{number}") for number in range(3)))
    rounds = strategy(terms, ledger=path)

    first = rounds.train_round(grid, SENT, 1, timeout=5)
    grid.nodes |= {200 + number: client(f"d{number}") for number in range(3)}  # more come than were announced
    second = rounds.train_round(grid, first.params, 2, timeout=5)

    ledger = PrivacyLedger.open_existing(path)
    assert [charge.step for charge in ledger.charges] == [SampledGaussian(1.0, 0.5), SampledGaussian(1.0, 0.5, 6, 3)]
    assert [charge.model for charge in ledger.charges] == [hash_of(first.params), hash_of(second.params)]
    assert first.privacy.epsilon == pytest.approx(epsilon({SampledGaussian(1.0, 0.5): 1}, 1e-2))
    assert second.privacy.epsilon == ledger.epsilon > first.privacy.epsilon
    assert strategy(terms, ledger=path).private.ledger.epsilon == ledger.epsilon
    with pytest.raises(ConfigError, match="Go on with the same"):
        strategy(ClientTerms(**{**vars(terms), "noise": 2.0}), ledger=path)


def test_the_ledger_does_not_tell_how_many_clients_were_away(tmp_path):
    terms = ClientTerms(clip=1.0, noise=1.0, rate=0.2, num_clients=10, cohort_cap=4, delta=1e-2)
    charged = []
    for here in (10, 9, 5, 3):
        rounds = strategy(terms, ledger=tmp_path / f"{here}.jsonl")
        rounds.train_round(federation(*(client(f"c{number}") for number in range(here))), SENT, 1, timeout=5)
        [charge] = PrivacyLedger.open_existing(tmp_path / f"{here}.jsonl").charges
        charged.append(charge.step)

    assert charged == [SampledGaussian(1.0, 0.2, 10, 4)] * 4
    costs = [epsilon({terms.step(here): 20}, terms.delta) for here in range(3, 11)]
    assert costs == sorted(costs)  # so that nobody is charged too little


def test_a_loop_that_is_not_ours_stops_before_the_budget_is_passed():
    terms = client_terms(clip=1.0, rate=1.0, num_clients=4, num_rounds=3, epsilon=5.0, delta=1e-2)
    rounds, grid, arrays = strategy(terms, epsilon=5.0), federation(client("a")), params_to_arrays(SENT)

    for number in (1, 2, 3):
        messages = rounds.configure_train(number, arrays, ConfigRecord(), grid)
        arrays, _ = rounds.aggregate_train(number, grid.send_and_receive(messages))

    assert 4.9 < rounds.private.ledger.epsilon <= 5.0
    with pytest.raises(BudgetSpentError, match="another round would take it from"):
        rounds.configure_train(4, arrays, ConfigRecord(), grid)
    assert grid.asked("train") == [100] * 3
    assert arrays_to_params(arrays)["w"].isfinite().all()


def test_a_model_that_leaves_its_type_is_charged_before_anybody_is_told():
    sent = {"w": torch.zeros(100, dtype=torch.float16)}
    rounds = strategy(terms_with(clip=1e9))

    with pytest.raises(DivergedError, match="float16"):
        rounds.train_round(federation(client("a")), sent, 1, timeout=5)

    assert [(charge.round, charge.model) for charge in rounds.private.ledger.charges] == [(1, "")]


def test_one_noised_result_is_all_that_a_round_gives():
    mean = PrivateMean(SENT, TERMS, RandomSource())
    mean.fold(SENT)
    mean.result()

    for again in (mean.result, lambda: mean.fold(SENT), lambda: mean.add_sums({}, 1)):
        with pytest.raises(RunError, match="one result"):
            again()


def test_sums_that_clients_encoded_themselves_count_as_their_replies_do():
    replies = [{name: tensor + step for name, tensor in SENT.items()} for step in (0.1, -3.0)]
    folded, summed = (PrivateMean(SENT, TERMS, RandomSource("same")) for _ in range(2))
    sums = {}
    for each in replies:
        folded.fold(each)
        summed.encoding.add(sums, each)

    summed.add_sums(sums, 2)

    assert hash_of(folded.result()) == hash_of(summed.result())


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": "examples"},
        {"aggregation": "median"},
        {"min_reply_fraction": 0.5},
        {"participation_fraction": 0.3},
    ],
)
def test_options_that_contradict_are_refused(options):
    with pytest.raises(ConfigError):
        MetaFedAvg(**{"participation_fraction": 1.0, "privacy": ClientPrivacy(TERMS), **options})


@pytest.mark.parametrize(
    "bad",
    [
        {"clip": 0.0},
        {"clip": 1e10},
        {"noise": 0.0},
        {"noise": math.nan},
        {"rate": 0.0},
        {"num_clients": 0},
        {"delta": 1.0},
    ],
)
def test_terms_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match="is refused"):
        ClientTerms(**{**vars(TERMS), **bad})
    with pytest.raises(ConfigError, match="--dp-epsilon or --dp-noise"):
        client_terms(clip=1.0, rate=0.5, num_clients=4, num_rounds=3)
