"""What a client may try: it costs that client its part, or the round its sum, and never makes a wrong sum unseen."""

from dataclasses import replace

import pytest
import torch

from nufed.common.errors import WireError
from nufed.common.privacy.secure import RoundFailedError, SecureClient
from tests.common.privacy.secure.rounds import Round, identity, make_task, names_of, plain_sum

NAMES = names_of(6)
HOSTILE = NAMES[5]


def assert_sum_of(round_, names):
    expected = plain_sum(names)
    unmasked = round_.server.unmask()
    assert unmasked.names == tuple(names)
    assert all(torch.equal(total, expected[key]) for key, total in unmasked.sums.items())


def test_unsigned_keys_and_keys_in_anothers_name_are_refused():
    round_ = Round(make_task(6))
    keys = round_.clients[HOSTILE].advertise()
    stolen = replace(keys, name=NAMES[0])
    round_.server.add_keys(keys)
    round_.server.add_keys(keys)  # a message that the network delivers twice

    for wrong in (stolen, replace(keys, mask_key=b"m" * 32), replace(keys, name="stranger")):
        with pytest.raises(WireError, match="round keys that a client of the roster signed"):
            round_.server.add_keys(wrong)
    second = Round(make_task(6)).clients[HOSTILE].advertise()
    with pytest.raises(WireError, match="Expected one message of each stage"):
        round_.server.add_keys(second)
    copied = replace(round_.clients[NAMES[0]].advertise(), mask_key=keys.mask_key)
    signature = identity(NAMES[0]).sign("advertise", round_.task.digest, copied.fields())
    with pytest.raises(WireError, match="of its own from 'client-000', got a key twice"):
        round_.server.add_keys(replace(copied, signature=signature))


def test_a_client_that_says_it_was_told_other_options_costs_itself_its_part_alone():
    round_ = Round(make_task(6))
    round_.clients[HOSTILE] = SecureClient(round_.task, identity(HOSTILE), round_.roster, view=b"v" * 32)
    cohort = round_.until("share")

    assert [member.name for member in cohort.members] == NAMES[:5]
    round_.gone = {"share": [HOSTILE]}
    round_.reveal(round_.confirm(round_.mask(round_.share(cohort))))
    assert_sum_of(round_, NAMES[:5])


@pytest.mark.parametrize(
    "tamper",
    [
        lambda shares: replace(shares, parcels=shares.parcels[:-1]),
        lambda shares: replace(shares, parcels=shares.parcels[::-1]),
        lambda shares: replace(shares, parcels=(replace(shares.parcels[0], peer=""), *shares.parcels[1:])),
        lambda shares: replace(shares, parcels=(replace(shares.parcels[0], ciphertext=b""), *shares.parcels[1:])),
        lambda shares: replace(shares, cohort_digest=bytes(32)),
        lambda shares: replace(shares, name="stranger"),
    ],
)
def test_shares_for_others_than_those_asked_for_are_refused(tamper):
    round_ = Round(make_task(6))
    cohort = round_.until("share")
    shares = round_.clients[HOSTILE].share(cohort)

    with pytest.raises(WireError):
        round_.server.add_shares(tamper(shares))

    round_.gone = {"share": [HOSTILE]}
    round_.reveal(round_.confirm(round_.mask(round_.share(cohort))))
    assert_sum_of(round_, NAMES[:5])


@pytest.mark.parametrize(
    "tamper",
    [
        lambda masked: replace(masked, arrays={**masked.arrays, "bias": masked.arrays["bias"][:2]}),
        lambda masked: replace(masked, arrays={**masked.arrays, "bias": masked.arrays["bias"].double()}),
        lambda masked: replace(masked, arrays={"bias": masked.arrays["bias"]}),
        lambda masked: replace(masked, arrays={**masked.arrays, "more": masked.arrays["bias"]}),
        lambda masked: replace(masked, transcript=bytes(32)),
        lambda masked: replace(masked, name="stranger"),
    ],
)
def test_integers_of_another_shape_or_round_cost_the_client_its_part(tamper):
    round_ = Round(make_task(6))
    delivered = round_.until("mask")
    masked = round_.masked(HOSTILE, delivered)

    with pytest.raises(WireError):
        round_.server.add_masked(tamper(masked))

    round_.gone = {"mask": [HOSTILE]}
    round_.reveal(round_.confirm(round_.mask(delivered)))
    assert_sum_of(round_, NAMES[:5])


def test_integers_count_once():
    round_ = Round(make_task(6))
    delivered = round_.until("mask")
    masked = round_.masked(HOSTILE, delivered)
    round_.server.add_masked(masked)

    with pytest.raises(WireError, match="of 'client-005' once, got them again"):
        round_.server.add_masked(masked)


def test_a_forged_signature_or_another_lists_is_refused():
    round_ = Round(make_task(6))
    survivors = round_.until("confirm")
    confirmation = round_.clients[HOSTILE].confirm(survivors)

    with pytest.raises(WireError, match="signature over the list of survivors from 'client-000'"):
        round_.server.add_confirmation(replace(confirmation, name=NAMES[0]))
    other = identity(HOSTILE).sign("survivors", replace(survivors, names=tuple(NAMES[:5])).to_bytes())
    with pytest.raises(WireError, match="signature over the list of survivors from 'client-005'"):
        round_.server.add_confirmation(replace(confirmation, signature=other))


def test_one_client_that_gives_out_wrong_shares_is_outvoted():
    round_ = Round(make_task(6))
    confirmed = round_.until("reveal")
    revealed = round_.clients[HOSTILE].reveal(confirmed)
    wrong = tuple((name, bytes([share[0]]) + bytes(32)) for name, share in revealed.shares)
    round_.server.add_revealed(replace(revealed, shares=(*wrong[:5], ("stranger", bytes(33)))))
    with pytest.raises(WireError, match="one share of each client"):
        round_.server.add_revealed(replace(revealed, shares=revealed.shares[::-1]))
    round_.gone = {"reveal": [HOSTILE]}

    round_.reveal(confirmed)

    assert_sum_of(round_, NAMES)


def test_two_clients_that_give_out_wrong_shares_cost_the_sum_and_not_its_truth():
    round_ = Round(make_task(6))
    confirmed = round_.until("reveal")
    for name in NAMES[4:]:
        revealed = round_.clients[name].reveal(confirmed)
        wrong = tuple((other, bytes(33)) for other, _ in revealed.shares)
        round_.server.add_revealed(replace(revealed, shares=wrong))
    round_.gone = {"reveal": NAMES[4:]}

    round_.reveal(confirmed)

    with pytest.raises(RoundFailedError, match="Expected 5 shares of a secret of 'client-000', got 4"):
        round_.server.unmask()


def test_a_client_that_deals_shares_of_another_secret_is_named(monkeypatch):
    from nufed.common.privacy.secure import round_secrets

    round_ = Round(make_task(6))
    cohort = round_.until("share")
    true_split = round_secrets.split
    with monkeypatch.context() as patched:
        patched.setattr(round_secrets, "split", lambda secret, *sizes: true_split(b"w" * 32, *sizes))
        round_.clients[HOSTILE].share(cohort)
    round_.reveal(round_.confirm(round_.mask(round_.share(cohort))))

    with pytest.raises(RoundFailedError, match="'client-005' that give the secret it committed to"):
        round_.server.unmask()


def test_a_client_that_leaves_after_dealing_shares_of_another_mask_key_is_named(monkeypatch):
    from nufed.common.privacy.secure import round_secrets

    round_ = Round(make_task(6), gone={"mask": [HOSTILE]})
    cohort = round_.until("share")
    true_split = round_secrets.split
    with monkeypatch.context() as patched:
        patched.setattr(round_secrets, "split", lambda secret, *sizes: true_split(b"w" * 32, *sizes))
        round_.clients[HOSTILE].share(cohort)
    round_.reveal(round_.confirm(round_.mask(round_.share(cohort))))

    with pytest.raises(RoundFailedError, match="'client-005' that give the secret it committed to"):
        round_.server.unmask()


def test_a_client_that_adds_noise_to_its_masks_shows_in_the_sum_of_weights():
    round_ = Round(make_task(6))
    delivered = round_.until("mask")
    masked = round_.masked(HOSTILE, delivered)
    round_.server.add_masked(replace(masked, weight=masked.weight ^ 2**40))
    round_.gone = {"mask": [HOSTILE]}
    for name in NAMES[:5]:
        round_.server.add_masked(round_.masked(name, delivered))
    survivors = round_.server.close_masked()
    round_.reveal(round_.confirm(survivors))

    with pytest.raises(RoundFailedError, match="sum of weights from 6 to 6 of 6 clients"):
        round_.server.unmask()
