"""What honest clients and an honest server get: the exact sum of those that stayed, or no sum at all."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nufed.common.fixed_point import ModelEncoding
from nufed.common.privacy.secure import ClientPolicy, RoundFailedError, UnsafeRoundError
from nufed.common.privacy.secure.graph import share_threshold_of
from nufed.strategy.aggregation import RunningMean
from tests.common.privacy.secure.rounds import STAGES, Round, make_task, names_of, plain_sum


@st.composite
def rounds(draw):
    """Cohorts of 3 to 12, on a complete graph or one of drawn neighbours, of which 0 to 2 leave before each stage."""
    count = draw(st.integers(3, 12))
    share = draw(st.sampled_from([0.51, 0.67, 0.8]))
    neighbours = draw(st.sampled_from([0, 0, max(2, count - 3), max(2, count // 2 + 1)]))
    staying = draw(st.permutations(names_of(count)))
    gone = {}
    for stage in STAGES:
        number = draw(st.integers(0, min(2, len(staying))))
        gone[stage], staying = staying[:number], staying[number:]
    task = make_task(count, threshold_share=share)
    if 0 < neighbours < count - 1:  # so few that their masks can fail to connect clients, which clients refuse
        task = replace(task, neighbours=neighbours, share_threshold=share_threshold_of(share, neighbours + 1))
    return task, gone, draw(st.randoms(use_true_random=False))


def should_fail(round_, present):
    """Return whether too few stay at a stage, or too few of those that keep some client's shares."""
    task = round_.task
    if any(len(names) < task.threshold for names in present.values()):
        return True
    revealing, sharers = present["reveal"], present["share"]
    holding = [each for each in revealing if each in sharers]
    return any(
        len({parcel.peer for parcel in round_.parcels[name].parcels} & set(holding)) < task.share_threshold
        for name in sharers
    )


@settings(max_examples=60)
@given(rounds())
def test_the_sum_is_that_of_the_survivors_bit_for_bit_or_the_round_fails(drawn):
    task, gone, shuffler = drawn
    policy = ClientPolicy(privacy_bits=0)
    round_ = Round(task, gone=gone, order=lambda names: shuffler.sample(names, len(names)), policy=policy)
    staying, present = names_of(task.num_asked), {}
    for stage in STAGES:
        staying = [name for name in staying if name not in gone[stage]]
        present[stage] = staying

    refused = False
    try:
        unmasked = round_.run()
    except RoundFailedError:
        unmasked = None
    except UnsafeRoundError as error:  # too few of a client's neighbours shared, and it does not mask
        unmasked, refused = None, "keepers of this client's shares" in str(error)

    assert refused or (unmasked is None) == should_fail(round_, present)
    if unmasked is not None:
        survivors = present["mask"]
        assert unmasked.names == tuple(sorted(survivors))
        assert unmasked.weight == len(survivors)
        expected = plain_sum(survivors)
        assert all(torch.equal(unmasked.sums[key], expected[key]) for key in expected)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("leaving", [0, 1, 2])
def test_the_mean_has_the_bits_of_the_running_mean_whoever_leaves_when(stage, leaving):
    generator = torch.Generator().manual_seed(5)
    sent = {"weight": torch.randn(40, 3, generator=generator), "count": torch.tensor([7, 9])}
    names = names_of(8)
    weights = {name: 3 + number for number, name in enumerate(names)}
    models = {name: {key: value + number for key, value in sent.items()} for number, name in enumerate(names)}
    total = sum(weights.values())
    encoding = ModelEncoding(sent, total)

    def encoded(name):
        sums = {}
        encoding.add(sums, models[name], weights[name])
        return sums

    gone = {stage: names[2 : 2 + leaving]}
    task = make_task(8, total_weight=total)
    unmasked = Round(task, gone=gone, sums=encoded, weight=weights.__getitem__).run()
    mean = encoding.mean(unmasked.sums, unmasked.weight)

    plain = RunningMean(sent, total)
    for name in reversed(names):
        if STAGES.index(stage) > STAGES.index("mask") or name not in gone[stage]:
            plain.fold(models[name], weights[name])
    expected = plain.result()
    assert all(torch.equal(mean[key], expected[key]) for key in sent)


def test_a_large_cohort_draws_neighbours_and_stands_those_that_leave_at_every_stage():
    names = names_of(101)
    shuffled = random.Random(3).sample(names, 101)
    gone = {stage: shuffled[2 * place : 2 * place + 2] for place, stage in enumerate(STAGES)}
    task = make_task(101)
    round_ = Round(task, gone=gone)

    unmasked = round_.run()

    assert 20 < task.neighbours < 100
    assert {len(each.parcels) for each in round_.parcels.values()} == {task.neighbours + 1}
    expected = plain_sum([name for name in names if name not in shuffled[:6]])
    assert all(torch.equal(unmasked.sums[key], expected[key]) for key in expected)
    assert unmasked.weight == 95


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_a_round_ends_there_and_gives_out_nothing(stage):
    round_ = Round(make_task(6), gone={stage: names_of(2)})

    with pytest.raises(RoundFailedError, match=r"Expected 5 of 6 clients, got 4 that .*Look at the clients' logs"):
        round_.run()

    # Nothing was unmasked: what the server holds has no plain sum in it.
    assert not any(torch.equal(total, plain_sum(names_of(6)[2:])[key]) for key, total in round_.server._sums.items())
