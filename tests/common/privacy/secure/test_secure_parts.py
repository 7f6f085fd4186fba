"""The parts of secure aggregation, each against an independent computation: shares, masks, neighbours, messages."""

import hashlib
import hmac
import itertools
import math
import os
import random
from fractions import Fraction

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from nufed.common.errors import ConfigError, WireError
from nufed.common.privacy.secure import (
    AdvertisedKeys,
    ClientPolicy,
    CohortKeys,
    Confirmation,
    ConfirmedSurvivors,
    DeliveredShares,
    EncryptedShares,
    MaskedInput,
    RevealedShares,
    SecureTask,
    Survivors,
    UnsafeRoundError,
    plan_task,
)
from nufed.common.privacy.secure.graph import (
    chance_of_exposure,
    chance_of_parting,
    chance_of_shortage,
    draw,
    neighbours_needed,
    share_threshold_of,
)
from nufed.common.privacy.secure.keys import AgreementKey, derived
from nufed.common.privacy.secure.masks import add_masks
from nufed.common.privacy.secure.sharing import PRIME, Recombination, split
from tests.common.privacy.secure.rounds import Round, integers, make_task, names_of


@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.data())
def test_any_threshold_of_the_shares_give_the_secret_and_fewer_fit_every_secret(secret, count, data):
    threshold = data.draw(st.integers(1, count))
    shares = split(secret, count, threshold, os.urandom)
    points = data.draw(st.permutations(range(count)))[:threshold]

    assert Recombination(points).secret([shares[point] for point in points]) == secret
    # With one share fewer, each other secret has a polynomial of this degree through the same shares.
    fewer, other = points[1:], int.from_bytes(hashlib.sha256(secret).digest())
    if fewer:
        value = interpolated({0: other, **{p + 1: int.from_bytes(shares[p]) for p in fewer}}, points[0] + 1)
        shares[points[0]] = value.to_bytes(33)
        assert Recombination(points).secret([shares[point] for point in points]) == other.to_bytes(32)


def interpolated(values, place):
    """Lagrange's formula modulo the prime."""
    total = 0
    for x, y in values.items():
        term = y
        for other in values:
            if other != x:
                term = term * (place - other) * pow(x - other, -1, PRIME) % PRIME
        total += term
    return total % PRIME


def test_the_field_is_one_and_large_enough_for_32_bytes():
    # Miller and Rabin's test for 40 bases: a composite number passes with a probability below 4^-40.
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for number in range(2, 42):
        powers = [pow(number, odd * 2**step, PRIME) for step in range(twos)]
        assert powers[0] == 1 or PRIME - 1 in powers
    assert PRIME > 2**256
    with pytest.raises(ValueError, match="32 bytes"):
        split(b"short", 3, 2, os.urandom)


def test_masks_are_the_key_stream_of_aes_256_in_counter_mode():
    key, other = bytes(range(32)), bytes(range(1, 33))
    sizes = {"b": 2**16 + 5, "a": 3}
    arrays = {name: torch.arange(size, dtype=torch.int64) for name, size in sizes.items()}

    weight = add_masks(arrays, 7, [key], [other])

    difference = key_stream(key) - key_stream(other)
    assert torch.equal(arrays["a"], torch.arange(3) + difference[:3])
    assert torch.equal(arrays["b"], torch.arange(2**16 + 5) + difference[3 : 2**16 + 8])
    assert (weight - 7 - int(difference[2**16 + 8])) % 2**64 == 0
    many = [bytes([number]) * 32 for number in range(70)]
    assert add_masks(arrays, weight, many, many) == weight
    assert add_masks(arrays, weight, [other], [key]) == 7
    assert torch.equal(arrays["b"], torch.arange(2**16 + 5))


def key_stream(key):
    """Counter mode by hand: the encrypted blocks 0, 1, 2, … of 16 bytes, big-endian."""
    counters = b"".join(number.to_bytes(16, "big") for number in range(2**15 + 8))
    stream = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)
    return torch.frombuffer(bytearray(stream), dtype=torch.int64)


def test_a_derived_key_is_hkdf_of_rfc_5869_and_depends_on_every_part():
    def packed(*fields):
        return b"".join(len(field).to_bytes(8, "big") + field for field in fields)

    salt = hashlib.sha256(packed(b"nufed secure aggregation 1", b"label")).digest()
    extracted = hmac.digest(salt, b"s" * 32, "sha256")
    expanded = hmac.digest(extracted, hashlib.sha256(packed(b"one", b"two")).digest() + b"\x01", "sha256")
    assert derived(b"s" * 32, "label", b"one", b"two") == expanded

    ours, theirs = AgreementKey(b"a" * 32), AgreementKey(b"b" * 32)
    key = ours.derive(theirs.public, "pairwise", b"cohort")
    assert key == theirs.derive(ours.public, "pairwise", b"cohort")
    assert (
        len({key, ours.derive(theirs.public, "self", b"cohort"), ours.derive(theirs.public, "pairwise", b"other")}) == 3
    )
    for small in (bytes(32), b"\x01" + bytes(31), (2**255 - 19 - 1).to_bytes(32, "little")):
        with pytest.raises(WireError, match="small order"):
            ours.derive(small, "pairwise", b"cohort")


def test_masked_integers_are_uniform_bytes_on_the_wire_even_if_all_are_zero():
    """Chi-square of 2^19 bytes against the uniform distribution, 255 degrees of freedom, at 5.5 standard deviations."""

    def zeros(name):
        return {"weight": torch.zeros(2**16, dtype=torch.int64)}

    round_ = Round(make_task(3), sums=zeros)
    masked = round_.masked(names_of(3)[0], round_.until("mask"))

    content = torch.frombuffer(bytearray(masked.arrays["weight"].numpy().tobytes()), dtype=torch.uint8)
    expected = len(content) / 256
    chi_square = float(((torch.bincount(content, minlength=256) - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 5.5 * math.sqrt(2 * 255)
    # Nor do neighbouring integers, or the two halves of one, have anything in common.
    values = masked.arrays["weight"].numpy().view("uint32").astype("float64")
    shifted = torch.tensor((values - values.mean())[:-1]) @ torch.tensor((values - values.mean())[1:])
    assert abs(float(shifted)) / (values.var() * len(values)) < 5.5 / math.sqrt(len(values))


def test_the_probabilities_of_neighbours_are_those_of_counting():
    for total, bad, drawn, threshold in itertools.product([9], [1, 2, 3], [3, 5], [2, 3]):
        hits = [sum(other < bad for other in some) for some in itertools.combinations(range(total), drawn)]
        exposed = Fraction(sum(hit >= threshold for hit in hits), len(hits))
        short = Fraction(sum(drawn - hit < threshold for hit in hits), len(hits))
        assert chance_of_exposure(10, drawn, threshold, bad) == pytest.approx(min(1, 10 * exposed))
        assert chance_of_shortage(10, drawn, threshold, bad / 10) == pytest.approx(min(1, 10 * short))


@pytest.mark.parametrize(
    ("clients", "neighbours", "threshold"), [(101, 36, 25), (200, 54, 37), (1000, 84, 57), (10_000, 106, 72)]
)
def test_the_neighbours_of_large_cohorts_keep_what_the_documentation_says(clients, neighbours, threshold):
    count = neighbours_needed(clients, 0.67)
    needed = share_threshold_of(0.67, count + 1)

    assert (count, needed) == (neighbours, threshold)
    colluders = clients // 5
    assert chance_of_exposure(clients, count, needed, colluders) <= 2.0**-40
    least = math.ceil(0.67 * clients)
    assert chance_of_parting(clients, count, needed, threshold=least, colluders=colluders) <= 2.0**-40
    assert chance_of_shortage(clients, count, needed) <= 2.0**-20
    less = share_threshold_of(0.67, count)
    assert (
        chance_of_exposure(clients, count - 1, less, colluders) > 2.0**-40
        or chance_of_shortage(clients, count - 1, less) > 2.0**-20
    )


def parts(draws, honest, leaving, threshold):
    """Return whether the server can sum some of the honest clients, at most half of the survivors, apart from the rest.

    By trying every division of them into those, the rest, and those declared gone; clients are bits of an integer.
    """
    masks = {i: draws[i] | sum(1 << j for j in honest if draws[j] >> i & 1) for i in honest}
    for division in itertools.product("SRD", repeat=len(honest)):
        part, rest = ([i for i, where in zip(honest, division, strict=True) if where == which] for which in "SR")
        gone = len(honest) - len(part) - len(rest)
        if not 1 <= len(part) <= len(rest) or gone > leaving:
            continue
        remaining, left = sum(1 << i for i in rest), sum(1 << honest[at] for at, d in enumerate(division) if d == "D")
        if all(not masks[i] & remaining and (draws[i] & ~left).bit_count() + 1 >= threshold for i in part):
            return True
    return False


def test_the_probability_that_masks_do_not_connect_honest_clients_is_bounded():
    """Clients 0 to 4 of 8 are honest; each draws 3; 4 shares of 4 are needed; one client may be declared gone."""
    others = {i: sorted(set(range(8)) - {i}) for i in range(5)}
    generator, graphs = random.Random(5), 300

    def drawn():
        return {i: sum(1 << j for j in generator.sample(others[i], 3)) for i in others}

    count = sum(parts(drawn(), list(others), 1, 4) for _ in range(graphs))
    bound = chance_of_parting(8, 3, 4, threshold=7, colluders=3)

    assert 0 < count / graphs < bound < 0.3
    assert chance_of_parting(8, 7, 6, threshold=6, colluders=2) == 0


def test_neighbours_that_connect_too_seldom_and_cohorts_that_shrank_too_far_are_refused():
    """A client's own share is one that its neighbours need not have: 39 of 101 would part once in 2^26 rounds."""
    assert chance_of_exposure(101, 39, 21, 20) <= 2.0**-40
    assert 2.0**-28 < chance_of_parting(101, 39, 21, threshold=52, colluders=20) < 2.0**-26
    assert neighbours_needed(101, 0.51) > 39

    task = plan_task(run_id="run", round=1, num_asked=1000, total_weight=1000, model_digest=bytes(32))
    ClientPolicy().check_sharing(task, 800)
    with pytest.raises(UnsafeRoundError, match="84 neighbours among 690 of 1000 clients"):
        ClientPolicy().check_sharing(task, 690)  # of whom 200 collude still


def test_each_client_is_drawn_as_often_as_any_other():
    others = names_of(20)
    counts = dict.fromkeys(others, 0)
    for _ in range(2000):
        drawn = draw(others, 5, os.urandom)
        assert len(set(drawn)) == 5
        for name in drawn:
            counts[name] += 1
    # 2000 draws of a quarter each: 500 ± 19.4; six standard deviations are passed once in 25 million tests of 20.
    assert all(abs(count - 500) < 6 * 19.4 for count in counts.values())


def test_a_plan_for_too_few_clients_or_neighbours_is_refused():
    digest = bytes(32)
    for options, reason in [
        ({"num_asked": 2}, "at least 3 clients, got 2"),
        ({"num_asked": 300, "neighbours": 10}, "got 10 neighbours"),
        ({"num_asked": 200, "threshold_share": 0.95}, "a tenth of 200 clients may leave"),
    ]:
        count = options["num_asked"]
        with pytest.raises(ConfigError, match=reason):
            plan_task(run_id="run", round=1, total_weight=count, model_digest=digest, **options)
    smallest = plan_task(run_id="run", round=1, num_asked=3, total_weight=3, model_digest=digest)
    assert (smallest.threshold, smallest.neighbours, smallest.share_threshold) == (3, 0, 3)


def messages():
    """One of each kind, of a real round."""
    round_ = Round(make_task(4))
    cohort = round_.until("share")
    shares = round_.clients["client-000"].share(cohort)
    delivered = round_.share(cohort)
    masked = round_.masked("client-000", delivered)
    survivors = round_.mask(delivered)
    confirmed = round_.confirm(survivors)
    return {
        SecureTask: round_.task,
        AdvertisedKeys: cohort.members[0],
        CohortKeys: cohort,
        EncryptedShares: shares,
        DeliveredShares: delivered["client-000"],
        MaskedInput: masked,
        Survivors: survivors,
        Confirmation: confirmed.confirmations[0],
        ConfirmedSurvivors: confirmed,
        RevealedShares: round_.clients["client-000"].reveal(confirmed),
    }


MESSAGES = {}


def read(kind, content):
    return kind.from_bytes(content, {}) if kind is MaskedInput else kind.from_bytes(content)


def message_bytes(kind):
    if not MESSAGES:
        MESSAGES.update({each: message.to_bytes() for each, message in messages().items()})
    return MESSAGES[kind]


KINDS = [
    SecureTask,
    AdvertisedKeys,
    CohortKeys,
    EncryptedShares,
    DeliveredShares,
    MaskedInput,
    Survivors,
    Confirmation,
    ConfirmedSurvivors,
    RevealedShares,
]


@settings(max_examples=100)
@given(st.sampled_from(KINDS), st.data())
def test_bytes_that_are_no_message_are_refused_and_those_that_are_have_one_encoding(kind, data):
    """Cut short, too long, changed, of another kind, or of no bytes: WireError, or the message that the bytes are."""
    whole = message_bytes(kind)
    assert read(kind, whole).to_bytes() == whole
    place = data.draw(st.integers(0, len(whole) - 1))
    piece = data.draw(st.binary(min_size=1, max_size=9))
    variants = [whole[:place], whole + piece, whole[:place] + piece + whole[place + len(piece) :], piece]
    variants += [whole[:place] + b"\xff" * 8 + whole[place + 8 :], message_bytes(data.draw(st.sampled_from(KINDS)))]

    for variant in variants:
        try:
            message = read(kind, variant)
        except WireError:
            continue
        assert message.to_bytes() == variant

    for wrong in (whole.decode("latin-1"), None, 3, list(whole)):
        with pytest.raises(WireError):
            read(kind, wrong)


def test_integers_of_other_clients_look_different_each_round():
    """Two rounds of one client with the same integers have nothing in common on the wire."""
    wires = []
    for _ in range(2):
        round_ = Round(make_task(3))
        wires.append(round_.masked("client-000", round_.until("mask")).arrays["weight"])

    assert not torch.equal(wires[0], wires[1])
    assert not torch.equal(wires[0], integers("client-000")["weight"])
