"""A roster is believed where the authority signed it, it is in force, and no newer one was seen."""

import base64
import datetime as dt
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.errors import PeerError
from nufed.common.privacy.secure import Identity, Roster

AUTHORITY = ec.generate_private_key(ec.SECP384R1())
KEYS = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("hospital-a", "klinik-ö", "zürich 3")}
EXPIRES = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
ROSTER = Roster({name: key.public_key() for name, key in KEYS.items()}, serial=7, expires=EXPIRES)
SIGNED = ROSTER.signed(AUTHORITY)
NOW = dt.datetime(2029, 12, 31, tzinfo=dt.UTC)


def read(content, **options):
    return Roster.read(content, AUTHORITY.public_key(), **({"now": NOW} | options))


def signed(roster, key=AUTHORITY, label="roster"):
    """Return a file of any JSON text, signed as the authority signs."""
    text = roster if isinstance(roster, str) else json.dumps(roster)
    signature = base64.b64encode(Identity("authority", key).sign(label, text.encode())).decode()
    return json.dumps({"roster": text, "signature": signature}).encode()


def fields(**changed):
    return json.loads(json.loads(SIGNED)["roster"]) | changed


def der(key):
    return base64.b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def test_a_roster_is_read_as_it_was_signed():
    roster = read(SIGNED, known_serial=7)

    assert roster.keys == ROSTER.keys
    assert (roster.serial, roster.expires) == (7, EXPIRES)
    signature = Identity("klinik-ö", KEYS["klinik-ö"]).sign("label", b"content")
    assert roster.has_signed("klinik-ö", signature, "label", b"content")
    assert not roster.has_signed("hospital-a", signature, "label", b"content")
    assert not roster.has_signed("klinik-ö", signature, "other label", b"content")
    assert not roster.has_signed("klinik-ö", b"no signature", "label", b"content")
    assert not roster.has_signed("nobody", signature, "label", b"content")


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (SIGNED, {"known_serial": 8}, "serial number from 8, got 7"),
        (SIGNED, {"now": EXPIRES}, "expired at 2030-01-01"),
        (signed(fields(), KEYS["hospital-a"]), {}, "signature of this federation's certificate authority"),
        (signed(fields(), label="advertise"), {}, "signature of this federation's certificate authority"),
        (SIGNED.replace(b"hospital-a", b"hospital-b"), {}, "signature of this federation's certificate authority"),
        (b"", {}, "JSON in UTF-8"),
        (b"[" * 100_000, {}, "JSON in UTF-8"),
        (b"[1]", {}, "a file with the fields roster, signature"),
        (b'{"roster": 1, "signature": ""}', {}, "a file whose roster has another type"),
        (b'{"roster": "", "signature": "", "signature": ""}', {}, "once, got one twice"),
        (signed(fields(format="nufed-roster-2")), {}, "format 'nufed-roster-1', got 'nufed-roster-2'"),
        (signed(fields(serial=0)), {}, "serial number from 1, got 0"),
        (signed(fields(serial=True)), {}, "whose serial has another type"),
        (signed(fields(serial=2**64)), {}, "serial number from 1"),
        (signed(fields(expires="2030-01-01T00:00:00")), {}, "a time with its zone"),
        (signed(fields(expires="tomorrow")), {}, "a time in ISO 8601"),
        (signed(fields(clients={})), {}, "1 to 65536 clients, got 0"),
        (signed(fields(clients={"": der(KEYS["hospital-a"])})), {}, "1 to 255 printable characters"),
        (signed(fields(clients={"a\n": der(KEYS["hospital-a"])})), {}, "1 to 255 printable characters"),
        (signed(fields(clients={"a": "no base64"})), {}, "base64, got 'no base64'"),
        (signed(fields(clients={"a": 3})), {}, "base64, got 3"),
        (signed(fields(clients={"a": "AAAA"})), {}, "public keys in DER"),
        (signed(fields(clients={"a": der(ec.generate_private_key(ec.SECP256R1()))})), {}, "curve P-384"),
        (signed(fields(clients={"a": der(ed25519.Ed25519PrivateKey.generate())})), {}, "curve P-384"),
        (signed(fields(clients=dict.fromkeys("ab", der(KEYS["hospital-a"])))), {}, "one for both 'a' and 'b'"),
        (signed(fields(more=1)), {}, "a roster with the fields format, serial, expires, clients, got others"),
        (signed(json.dumps(fields()).replace('"klinik', '"klinik')[:-1] + ', "serial": 9}'), {}, "one twice"),
    ],
)
def test_other_rosters_are_refused(content, options, reason):
    with pytest.raises(PeerError, match=reason):
        read(content, **options)


def test_a_roster_without_an_end_and_the_clocks_own_time_are_taken():
    endless = Roster(ROSTER.keys, serial=8).signed(AUTHORITY)

    assert Roster.read(endless, AUTHORITY.public_key(), known_serial=7).expires is None


@given(st.integers(0, len(SIGNED) - 1), st.binary(max_size=4))
def test_a_file_that_was_changed_anywhere_is_refused_or_says_the_same(place, piece):
    changed = SIGNED[:place] + piece + SIGNED[place + len(piece) :]

    for content in (changed, SIGNED[:place], SIGNED + piece):
        try:
            roster = read(content)
        except PeerError:
            continue
        assert roster == ROSTER
