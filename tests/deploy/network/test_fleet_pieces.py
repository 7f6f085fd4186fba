"""Cutting and assembling give back every byte, and what is incomplete is not taken for whole."""

import pytest
from flwr.app import Message as TaskMessage
from flwr.app import RecordDict
from flwr.proto.message_pb2 import Message
from hypothesis import given
from hypothesis import strategies as st

from nufed.deploy.network import pieces
from nufed.deploy.network.deliveries import Deliveries
from nufed.deploy.network.pieces import CutBytes, assemble, parse_piece_name, piece_name
from tests.strategy.fake_grid import FakeGrid

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


@given(HEX, st.integers(0, 10**9 - 1))
def test_a_pieces_name_reads_back(message_id, number):
    assert parse_piece_name(piece_name(message_id, number)) == (message_id, number)


@pytest.mark.parametrize("name", ["abc", "abc/", "abc/x", "abc/-1", "abc/1/2", "abc/1000000000", "abc/٣"])
def test_a_name_that_is_not_a_pieces_is_left_to_flower(name):
    assert parse_piece_name(name) is None


def expected(node_id=7):
    """Deliveries that expect a reply to one message, and the message's id."""
    FakeGrid({})  # gives messages a sender
    message = TaskMessage(RecordDict(), node_id, "train")
    message.metadata.__dict__["_message_id"] = "id"
    deliveries = Deliveries()
    deliveries.expect(message, whole=True)
    return deliveries


@given(st.permutations(range(5)))
def test_pieces_may_come_in_any_order_and_twice(order):
    record = Message()
    record.metadata.message_type = "train me well, it is long"
    cut, deliveries = CutBytes([record.SerializeToString()]), expected()

    kept = [deliveries.add_piece(7, "id", number, cut.piece(number)) for number in [*order, order[0]]]

    assert all(kept)
    assert cut.count == 5
    assert assemble(deliveries.take_pieces(7, "id", 5)) == record
    assert deliveries.take_pieces(7, "id", 5) is None


def test_a_message_with_a_piece_missing_or_too_many_is_none():
    deliveries = expected()

    for present, count in (([0, 2], 3), ([0, 1], 1), ([1, 2], 2), ([0], 40_000_000)):
        for number in present:
            assert deliveries.add_piece(7, "id", number, b"")
        assert deliveries.take_pieces(7, "id", count) is None


def test_pieces_that_nobody_waits_for_are_not_kept():
    deliveries = expected()

    assert not deliveries.add_piece(8, "id", 0, b"")
    assert not deliveries.add_piece(7, "other", 0, b"")
    assert not deliveries.add_piece(7, "id", 0, bytes(8))
    assert not deliveries.add_piece(7, "id", 10**8, b"")
    deliveries.forget("id")
    assert not deliveries.add_piece(7, "id", 0, b"")


def test_pieces_that_make_up_no_message_are_an_empty_one():
    assert assemble([b"\xff\xff", b"\xff"]) == Message()
