"""What an operator sees of connections: who is there since when, who works, how many bytes, and who has left."""

import time

from nufed.common.events import Connection, EventStream
from nufed.deploy.network.connections import Connections


def connections():
    heard, events = [], EventStream()
    events.listen(heard.append)
    return Connections(events), heard


def test_a_connection_is_known_from_its_calls():
    known, heard = connections()
    known.note_request(7, "ActivateNode", 100)
    assert known.all() == ()  # nobody knows its name yet
    before = time.time()
    known.join(7, "a", "a")
    known.note_request(7, "PullMessages", 50)
    known.note_response(7, "PullMessages", 1_000, is_message=True)

    [working] = known.all()
    known.note_request(7, "PushMessages", 900)
    known.note_response(7, "PushMessages", 10, is_message=False)
    [idle] = known.all()
    known.leave(7)
    [gone] = known.all()

    assert before <= working.connected_since <= working.last_seen <= idle.last_seen
    assert (working.is_working, idle.is_working, gone.is_online) == (True, False, False)
    assert (idle.bytes_up, idle.bytes_down) == known.traffic(7) == (1_050, 1_010)
    assert [(event.kind, event.client) for event in heard] == [("joined", "a"), ("left", "a")]
    assert isinstance(gone, Connection)
    assert known.traffic(8) == (0, 0)


def test_a_client_that_calls_itself_otherwise_as_a_member_is_one_client():
    known, heard = connections()
    known.join(1, "laptop", "")
    known.rename(1, "client-000")
    known.rename(2, "client-001")  # it has said who it is before its connection was looked at
    known.join(2, "other", "")
    known.leave(1)
    known.join(1, "laptop", "")

    assert [each.client for each in known.all()] == ["client-000", "client-001"]
    assert [(event.kind, event.client) for event in heard] == [
        ("joined", "laptop"),
        ("left", "laptop"),
        ("joined", "client-001"),
        ("left", "client-000"),
        ("joined", "client-000"),
    ]
