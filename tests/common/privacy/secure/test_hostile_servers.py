"""What a server may try against honest clients, and what they make of it."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from nufed.common.privacy.secure import (
    AdvertisedKeys,
    ClientPolicy,
    CohortKeys,
    Confirmation,
    ConfirmedSurvivors,
    DeliveredShares,
    RoundFailedError,
    SecureClient,
    Survivors,
    UnsafeRoundError,
)
from nufed.common.privacy.secure.keys import AgreementKey
from tests.common.privacy.secure.rounds import (
    MODEL,
    Round,
    identity,
    integers,
    make_task,
    names_of,
    plain_sum,
    roster,
)

NAMES = names_of(6)
VICTIM, OTHER = NAMES[0], NAMES[1]


def with_member(cohort, changed):
    """Return a cohort in which a client's keys are others."""
    return CohortKeys(tuple(changed if each.name == changed.name else each for each in cohort.members))


def member(cohort, name):
    return next(each for each in cohort.members if each.name == name)


def unsigned_by_owner(cohort, round_):
    """The server puts a mask key of its own in the place of another client's."""
    return with_member(cohort, replace(member(cohort, OTHER), mask_key=AgreementKey(b"k" * 32).public))


def signed_by_another_client(cohort, round_):
    """The server works with a client that it has sign keys in another's name."""
    keys = replace(member(cohort, OTHER), mask_key=AgreementKey(b"k" * 32).public)
    signature = identity(NAMES[2]).sign("advertise", round_.task.digest, keys.fields())
    return with_member(cohort, replace(keys, signature=signature))


def of_an_earlier_round(cohort, round_):
    """The server keeps a client's signed keys of which it got the secrets in an earlier round."""
    earlier = replace(round_.task, round=round_.task.round - 1)
    old = SecureClient(earlier, identity(OTHER), round_.roster).advertise()
    return with_member(cohort, old)


def of_another_grid(cohort, round_):
    """The server tells one half of the clients another total weight, so another grid."""
    other = replace(round_.task, total_weight=round_.task.total_weight + 1)
    return with_member(cohort, SecureClient(other, identity(OTHER), round_.roster).advertise())


def of_small_order(cohort, round_):
    """A client works with the server, and signs a key with which anybody knows the secret."""
    keys = replace(member(cohort, OTHER), share_key=bytes(32))
    signature = identity(OTHER).sign("advertise", round_.task.digest, keys.fields())
    return with_member(cohort, replace(keys, signature=signature))


def twice(cohort, round_):
    """A client works with the server, and takes another's mask key for its own."""
    keys = replace(member(cohort, OTHER), mask_key=member(cohort, NAMES[2]).mask_key)
    signature = identity(OTHER).sign("advertise", round_.task.digest, keys.fields())
    return with_member(cohort, replace(keys, signature=signature))


def told_other_options(cohort, round_):
    """The server told another client to train with a step size of 0, to know its part of the sum."""
    return with_member(cohort, SecureClient(round_.task, identity(OTHER), round_.roster, view=b"v" * 32).advertise())


def of_a_stranger(cohort, round_):
    """The server invents a client."""
    stranger = SecureClient(round_.task, identity("stranger"), roster(["stranger"])).advertise()
    return CohortKeys(tuple(sorted([*cohort.members[:-1], stranger], key=lambda each: each.name)))


def without_the_victim(cohort, round_):
    return CohortKeys(tuple(each for each in cohort.members if each.name != VICTIM))


def too_small(cohort, round_):
    """The server shrinks the cohort."""
    return CohortKeys(cohort.members[:4])


def too_large(cohort, round_):
    return CohortKeys((*cohort.members, replace(cohort.members[-1], name="z")))


def one_client_twice(cohort, round_):
    return CohortKeys((cohort.members[0], *cohort.members[:5]))


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (unsigned_by_owner, "signed for this round"),
        (signed_by_another_client, "signed for this round"),
        (of_an_earlier_round, "signed for this round"),
        (of_another_grid, "signed for this round"),
        (of_small_order, "small order"),
        (twice, "a key twice"),
        (told_other_options, "'client-001' was told others"),
        (of_a_stranger, "clients of the roster"),
        (without_the_victim, "keys of 'client-000' itself"),
        (too_small, "cohort of 5 to 6 clients, got 4"),
        (too_large, "cohort of 5 to 6 clients, got 7"),
        (one_client_twice, "once and in order"),
    ],
)
def test_no_secret_is_shared_with_a_cohort_that_is_not_who_it_says(tamper, reason):
    round_ = Round(make_task(6))
    cohort = round_.until("share")

    with pytest.raises(UnsafeRoundError, match=reason):
        round_.clients[VICTIM].share(tamper(cohort, round_))

    assert len(round_.clients[VICTIM].share(cohort).parcels) == 6  # the true cohort still gets its answer


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_asked": 2, "threshold": 2, "share_threshold": 2, "total_weight": 2}, "at least 3 of 2"),
        ({"threshold": 3, "share_threshold": 3}, "at least 4 of 6 clients, got a threshold of 3"),
        ({"threshold": 7}, "at least 4 of 6"),
        ({"share_threshold": 3}, "shared so that 5 to 6"),
        ({"neighbours": 1, "share_threshold": 1}, "shared so that 2 to 2"),
        ({"neighbours": 2, "share_threshold": 1}, "shared so that 2 to 3"),
        ({"total_weight": 5}, "total weight from 6"),
        ({"total_weight": 2**62}, "total weight from 6"),
    ],
)
def test_no_client_agrees_to_a_task_that_protects_too_little(fields, reason):
    task = replace(make_task(6), **fields)

    with pytest.raises(UnsafeRoundError, match=reason):
        SecureClient(task, identity(VICTIM), roster(NAMES))


def test_no_client_agrees_to_so_few_neighbours_that_chance_may_expose_it():
    names = names_of(300)
    task = replace(make_task(300), neighbours=20, share_threshold=14)

    with pytest.raises(UnsafeRoundError, match="got 20 neighbours"):
        ClientPolicy().check(task)

    ClientPolicy().check(make_task(300))
    with pytest.raises(UnsafeRoundError, match="roster that has this client's key"):
        SecureClient(make_task(300), identity(VICTIM), roster_without(names))


def roster_without(names):
    """A roster in which the victim's name has another client's key."""
    keys = {**roster(names[:3]).keys, VICTIM: identity("impostor").key.public_key()}
    return type(roster(names[:3]))(keys)


def moved(delivered):
    return replace(delivered, sharers=delivered.sharers[:4], parcels=delivered.parcels[:3])


def of_no_sharer(delivered):
    return replace(delivered, sharers=delivered.sharers[:5])


def without_itself(delivered):
    return DeliveredShares(delivered.sharers[1:], delivered.parcels)


def with_a_stranger(delivered):
    return replace(delivered, sharers=(*delivered.sharers[:5], "stranger"))


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (moved, "at least 5 clients that shared, got 4"),
        (of_no_sharer, "shares of clients that shared"),
        (without_itself, "this client, 'client-000', among the clients that shared"),
        (with_a_stranger, "clients that shared of this round"),
    ],
)
def test_no_integers_are_given_to_other_clients_than_those_that_share_masks(tamper, reason):
    round_ = Round(make_task(6))
    delivered = round_.until("mask")

    with pytest.raises(UnsafeRoundError, match=reason):
        round_.clients[VICTIM].mask(tamper(delivered[VICTIM]), integers(VICTIM), 1, MODEL)

    assert not round_.clients[VICTIM].has_masked


def test_a_model_other_than_the_one_all_were_promised_is_not_trained_for():
    round_ = Round(make_task(6))
    delivered = round_.until("mask")[VICTIM]

    with pytest.raises(UnsafeRoundError, match="model that all clients of the round were promised"):
        round_.clients[VICTIM].mask(delivered, integers(VICTIM), 1, b"x" * 32)
    with pytest.raises(UnsafeRoundError, match="room for this client's 2, got 6"):
        round_.clients[VICTIM].mask(delivered, integers(VICTIM), 2, MODEL)


def test_tampered_shares_are_told_and_left_out_and_change_no_sum():
    round_ = Round(make_task(6))
    delivered = round_.until("mask")
    first, second, third, *rest = delivered[VICTIM].parcels
    spoiled = replace(first, ciphertext=first.ciphertext[:-1] + bytes([first.ciphertext[-1] ^ 1]))
    exchanged = replace(second, ciphertext=third.ciphertext)
    delivered[VICTIM] = replace(
        delivered[VICTIM], parcels=(spoiled, exchanged, replace(third, seed_commitment=b"c" * 32), *rest)
    )

    survivors = round_.mask(delivered)
    round_.reveal(round_.confirm(survivors))

    assert round_.clients[VICTIM].unreadable == tuple(NAMES[1:4])
    assert round_.server.unreadable == {name: {VICTIM} for name in NAMES[1:4]}
    expected = plain_sum(NAMES)
    assert all(torch.equal(total, expected[key]) for key, total in round_.server.unmask().sums.items())


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (NAMES[1:], "this client, 'client-000', among the survivors"),
        (NAMES[:4], "at least 5 survivors, got 4"),
        ([*NAMES[:5], "stranger"], "survivors of this round"),
        ([NAMES[0], *NAMES[:5]], "each once"),
    ],
)
def test_no_list_is_signed_without_enough_clients_that_masked(names, reason):
    round_ = Round(make_task(6))
    survivors = round_.until("confirm")

    with pytest.raises(UnsafeRoundError, match=reason):
        round_.clients[VICTIM].confirm(replace(survivors, names=tuple(names)))


def test_a_server_that_tells_clients_different_survivors_gets_no_shares():
    """It says to one half that the last client left, to the other half that the last but one did."""
    round_ = Round(make_task(6))
    survivors = round_.until("confirm")
    lists = {
        name: replace(survivors, names=tuple(NAMES[:5] if name in NAMES[::2] else [*NAMES[:4], NAMES[5]]))
        for name in NAMES[:4]
    }
    signed = {name: round_.clients[name].confirm(lists[name]) for name in NAMES[:4]}
    told = ConfirmedSurvivors(tuple(signed.values()))

    with pytest.raises(UnsafeRoundError, match="at least 5 survivors that signed, got 4"):
        round_.clients[VICTIM].reveal(told)
    more = ConfirmedSurvivors((*told.confirmations, Confirmation(NAMES[4], told.confirmations[0].signature)))
    with pytest.raises(UnsafeRoundError, match="'client-001' to have signed the list of survivors that this client"):
        round_.clients[VICTIM].reveal(more)


def test_no_client_gives_out_both_secrets_of_another():
    round_ = Round(make_task(6))
    survivors = round_.until("confirm")
    confirmed = round_.confirm(survivors)
    client = round_.clients[VICTIM]
    revealed = client.reveal(confirmed)

    shorter = replace(survivors, names=tuple(NAMES[:5]))
    with pytest.raises(UnsafeRoundError, match="stage 'confirm' that was answered already, got another one"):
        client.confirm(shorter)
    signed = tuple(Confirmation(name, identity(name).sign("survivors", shorter.to_bytes())) for name in shorter.names)
    with pytest.raises(UnsafeRoundError, match="stage 'reveal' that was answered already, got another one"):
        client.reveal(ConfirmedSurvivors(signed))
    assert [name for name, _ in revealed.shares] == NAMES
    assert client.reveal(confirmed) is revealed  # a message that the network delivers twice


def test_lists_that_colluding_clients_signed_twice_free_no_secret_of_one_that_did_not():
    """Two of six help the server, and sign both lists; the honest four cannot be split into two majorities."""
    round_ = Round(make_task(6))
    survivors = round_.until("confirm")
    shorter = replace(survivors, names=tuple(NAMES[:5]))
    asked = {NAMES[0]: survivors, NAMES[1]: survivors, NAMES[2]: shorter, NAMES[3]: shorter}
    for name, told in asked.items():
        round_.clients[name].confirm(told)

    for name, told in asked.items():
        content = told.to_bytes()
        same = [other for other in asked if asked[other] == told]
        signers = sorted({*same, NAMES[4], *([NAMES[5]] if told is survivors else [])})
        signed = [Confirmation(each, identity(each).sign("survivors", content)) for each in signers]
        with pytest.raises(UnsafeRoundError, match="survivors that signed, got"):
            round_.clients[name].reveal(ConfirmedSurvivors(tuple(signed)))


def test_sharers_told_differently_to_two_clients_end_the_round_without_shares():
    round_ = Round(make_task(6))
    delivered = round_.until("mask")
    parcels = [each for each in delivered[VICTIM].parcels if each.peer != NAMES[5]]
    told = DeliveredShares(tuple(NAMES[:5]), tuple(parcels))

    masked = round_.clients[VICTIM].mask(told, integers(VICTIM), 1, MODEL)

    assert masked.transcript != round_.server._transcript
    with pytest.raises(UnsafeRoundError, match="survivors of the round in which this client masked"):
        round_.clients[VICTIM].confirm(Survivors(round_.server._transcript, tuple(NAMES[:5])))


def test_a_stage_out_of_its_order_or_after_the_end_is_refused():
    round_ = Round(make_task(6))
    client = round_.clients[VICTIM]

    with pytest.raises(UnsafeRoundError, match="Expected stage 'advertise' of round 4, got 'confirm'"):
        client.confirm(Survivors(bytes(32), tuple(NAMES)))
    round_.run()
    with pytest.raises(UnsafeRoundError, match="round 4 is over"):
        client.mask(round_.server.close_shares()[VICTIM], integers(VICTIM), 1, MODEL)


def test_a_request_that_comes_again_gets_the_same_bytes_and_one_with_other_content_none():
    round_ = Round(make_task(6))
    client = round_.clients[VICTIM]
    cohort = round_.until("share")
    assert client.advertise().to_bytes() == client.advertise().to_bytes()
    assert client.share(cohort).to_bytes() == client.share(cohort).to_bytes()
    with pytest.raises(UnsafeRoundError, match="stage 'share' that was answered already"):
        client.share(CohortKeys(cohort.members[:5]))
    delivered = round_.share(cohort)[VICTIM]

    first = client.mask(delivered, integers(VICTIM), 1, MODEL)
    again = client.mask(delivered, integers(VICTIM), 1, MODEL)

    assert all(torch.equal(first.arrays[key], again.arrays[key]) for key in first.arrays)
    assert first.weight == again.weight
    # The same masks over other integers would give away their difference.
    with pytest.raises(UnsafeRoundError, match="stage 'mask' that was answered already"):
        client.mask(delivered, integers(OTHER), 1, MODEL)


def test_secrets_are_in_no_text_and_no_pickle_and_gone_after_the_round():
    drawn = []

    def entropy(size):
        drawn.append(torch.randint(256, (size,), dtype=torch.uint8).numpy().tobytes())
        return drawn[-1]

    round_ = Round(make_task(6))
    client = round_.clients[VICTIM] = SecureClient(round_.task, identity(VICTIM), round_.roster, entropy=entropy)
    round_.mask(round_.until("mask"))
    secrets = client._secrets

    texts = [repr(each) for each in (client, secrets, secrets.mask_key, secrets._seed, secrets._kept, identity(VICTIM))]
    assert not [text for text in texts for secret in drawn[:3] if secret.hex() in text or repr(secret) in text]
    for each in (client, secrets, secrets.mask_key, secrets._seed, identity(VICTIM)):
        with pytest.raises(TypeError, match="do not pickle"):
            pickle.dumps(each)
        with pytest.raises(TypeError, match="do not pickle"):
            copy.deepcopy(each)
    seed, kept = secrets._seed, [share for pair in secrets._kept.values() for share in pair]
    client.forget()
    assert seed.reveal() == bytes(32)
    assert {each.reveal() for each in kept} == {bytes(33)}
    with pytest.raises(UnsafeRoundError, match="is over"):
        client.confirm(round_.server.close_masked())


def test_a_server_that_says_a_clients_neighbours_left_cannot_unmask_it():
    """In a large cohort it might isolate a client: it has everybody who masks with it left out, and gets their keys."""
    task = replace(make_task(36), neighbours=4, share_threshold=4)
    round_ = Round(task, policy=ClientPolicy(privacy_bits=0))
    survivors = round_.until("confirm")
    partners = {name: {each.peer for each in shares.parcels} for name, shares in round_.parcels.items()}
    near = {
        name: {other for other in partners if other in partners[name] or name in partners[other]} for name in partners
    }
    victim = min(near, key=lambda name: len(near[name]))
    round_.alive = [name for name in survivors.names if name == victim or name not in near[victim]]
    assert len(round_.alive) >= task.threshold

    round_.server._survivors = replace(survivors, names=tuple(round_.alive))
    round_.reveal(round_.confirm(round_.server._survivors))

    with pytest.raises(RoundFailedError, match="shares of a secret of"):
        round_.server.unmask()
    given = [message.name for message in round_.server._revealed.values() if victim in dict(message.shares)]
    assert given == [victim]  # those that keep its seed were left out, and are not asked; four of its shares are needed


def test_a_round_with_another_ones_keys_cannot_be_unmasked_even_by_everybody():
    round_ = Round(make_task(6))
    delivered = round_.until("mask")
    wrong = Round(make_task(6))
    other = wrong.until("mask")
    masked = wrong.masked(VICTIM, other)
    round_.server.add_masked(replace(masked, transcript=round_.server._transcript))
    for name in NAMES[1:]:
        round_.server.add_masked(round_.masked(name, delivered))
    survivors = round_.server.close_masked()
    round_.clients[VICTIM].mask(delivered[VICTIM], integers(VICTIM), 1, MODEL)
    round_.reveal(round_.confirm(survivors))

    with pytest.raises(RoundFailedError, match="a client masked otherwise than agreed"):
        round_.server.unmask()


def test_keys_advertised_to_the_server_are_the_clients_own():
    keys = SecureClient(make_task(6), identity(VICTIM), roster(NAMES)).advertise()

    assert AdvertisedKeys.from_bytes(keys.to_bytes()) == keys
    assert len({keys.mask_key, keys.share_key, keys.seed_commitment, keys.view}) == 4
