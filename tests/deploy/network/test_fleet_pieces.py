"""Cutting and assembling give back every byte, and what is incomplete is not taken for whole."""

import pytest
from flwr.proto.message_pb2 import Message
from hypothesis import given
from hypothesis import strategies as st

from nufed.deploy.network import pieces
from nufed.deploy.network.pieces import CutBytes, PieceInbox, parse_piece_name, piece_name

HEX = st.text("0123456789abcdef", min_size=1, max_size=64)


@pytest.fixture(scope="module", autouse=True)
def _small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", 7)
        yield


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_the_pieces_make_up_the_parts(parts):
    cut = CutBytes(parts)

    found = [cut.piece(number) for number in range(cut.count)]

    assert b"".join(found) == b"".join(parts)
    assert all(len(piece) == 7 for piece in found[:-1])
    assert cut.piece(cut.count) == b""


@given(HEX, st.integers(0, 10**9))
def test_a_pieces_name_reads_back(message_id, number):
    assert parse_piece_name(piece_name(message_id, number)) == (message_id, number)


@pytest.mark.parametrize("name", ["abc", "abc/", "abc/x", "abc/-1", "abc/1/2"])
def test_a_name_that_is_not_a_pieces_is_left_to_flower(name):
    assert parse_piece_name(name) is None


@given(st.permutations(range(5)))
def test_pieces_may_come_in_any_order_and_twice(order):
    record = Message()
    record.metadata.message_type = "train me well, it is long"
    cut, inbox = CutBytes([record.SerializeToString()]), PieceInbox()

    for number in [*order, order[0]]:
        inbox.add("id", number, cut.piece(number))

    assert cut.count == 5
    assert inbox.take("id", 5) == record
    assert inbox.take("id", 5) is None


def test_a_message_with_a_piece_missing_or_too_many_is_none():
    inbox = PieceInbox()
    inbox.add("id", 0, b"")
    inbox.add("id", 2, b"")

    assert inbox.take("id", 3) is None
    inbox.add("id", 0, b"")
    inbox.add("id", 1, b"")
    assert inbox.take("id", 1) is None


def test_forgotten_pieces_are_gone():
    inbox = PieceInbox()
    inbox.add("id", 0, b"")

    inbox.forget("id")

    assert inbox.take("id", 1) is None
