"""events.jsonl: what a run leaves of its events, also when it was cut short, goes on, or grows too large."""

import json

import pytest
from flwr.app import Error, Message, MessageType
from flwr.clientapp import ClientApp

from nufed.client.app import app as client_app
from nufed.common.errors import NufedError
from nufed.common.events import EventStream, Finished, Note, Replied, RoundClosed, Started
from nufed.deploy.commands.cli import main
from nufed.server.control import RunControl
from nufed.server.events_file import EVENTS, EventsFile, read_events
from tests.server.test_run import StopAfter, lines, model_bytes, run, summary


def kinds(folder):
    return [event.kind for event in read_events(folder)]


def started(folder):
    return Started(
        run="r", folder=str(folder), options={}, engine="local", first_round=1, num_rounds=1, measure="accuracy"
    )


def test_a_run_leaves_every_event_with_the_numbers_of_its_metrics(tmp_path):
    folder = run(tmp_path)

    events = list(read_events(folder))
    records = lines(folder)

    found = kinds(folder)
    assert found.count("joined") == 9
    assert found.index("joined") < found.index("started") < found.index("asked")
    assert found[-1] == "finished"
    assert {event.run for event in events} == {folder.name}
    assert [event.time for event in events] == sorted(event.time for event in events)
    rounds = [event for event in events if event.kind == "round"]
    for event, record in zip(rounds, records, strict=True):
        assert {name: getattr(event, name) for name in record if name not in ("clients", "evaluation")} == {
            name: value for name, value in record.items() if name not in ("clients", "evaluation")
        }
    trained = [event for event in events if event.kind == "replied" and event.phase == "training"]
    assert sum(event.bytes_up for event in trained) == summary(folder)["costs"]["bytes_up"]
    for event in trained:
        assert event.loss == records[event.round - 1]["clients"][event.client]["loss"]
    final = next(event for event in events if event.kind == "evaluation" and event.final)
    for group in ("participating", "new"):
        assert list(final.groups[group]["accuracy"]) == summary(folder)[group]["accuracy"]
    assert {client["group"] for client in final.clients.values()} == {"participating", "new"}
    assert found.count("checkpoint") == 4


def test_another_engine_leaves_the_same_events(tmp_path):
    typed = ["simulate", "--quiet", "--clients", "4", "--new-clients", "1", "--rounds", "2", "--model", "linear"]
    for engine in ("local", "cohort"):
        assert main([*typed, "--engine", engine, "--out", str(tmp_path / engine)]) == 0

    local, cohort = (sorted(kinds(next((tmp_path / engine).iterdir()))) for engine in ("local", "cohort"))

    assert cohort == local


def test_a_resumed_run_goes_on_after_a_line_that_was_cut_short(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", listener=StopAfter(2))
    (folder,) = (tmp_path / "cut").iterdir()
    interrupted = kinds(folder)
    with (folder / EVENTS).open("ab") as file:
        file.write(b'{"event": "round", "rou')

    run(tmp_path / "cut", resume=folder)

    assert interrupted[-1] == "interrupted"
    events = list(read_events(folder))
    assert [event.first_round for event in events if event.kind == "started"] == [1, 3]
    assert [event.round for event in events if event.kind == "round"] == [1, 2, 3, 4]
    assert events[-1].kind == "finished"
    assert model_bytes(folder) == model_bytes(whole)


def test_a_run_ends_after_its_present_round_when_that_is_asked_for(tmp_path):
    control = RunControl()

    def press(event):
        if event.kind == "asked" and event.round == 2:
            control.request_stop("pressed \x1b[31mstop")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, listener=press, control=control)
    (folder,) = tmp_path.iterdir()
    stopped = summary(folder)
    run(tmp_path, resume=folder)

    assert (stopped["status"], stopped["rounds"], stopped["reason"]) == ("interrupted", 2, r"pressed \x1b[31mstop")
    assert summary(folder)["status"] == "complete"
    assert [event.reason for event in read_events(folder) if event.kind == "interrupted"] == [r"pressed \x1b[31mstop"]


def test_whatever_a_client_sends_is_one_printable_line_in_the_file(tmp_path):
    hostile = "<script>alert(1)</script>\x1b]0;owned\x07\x9b31m\u202e\n" + "A" * 2**20

    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_config["partition-id"] == 0:
            return Message(Error(1, hostile), reply_to=message)
        return client_app(message, context)

    for kind in (MessageType.EVALUATE, MessageType.QUERY):
        getattr(app, kind)()(client_app)
    folder = run(tmp_path, client=app, federation__participation_fraction=1.0)

    content = (folder / EVENTS).read_bytes()
    rejected = [event for event in read_events(folder) if event.kind == "rejected"]

    assert len(rejected) == 4
    assert all(event.reason.isprintable() and len(event.reason) < 500 for event in rejected)
    assert content.isascii()
    assert not set(content) & (set(range(32)) - {10})
    assert b"alert(1)" in content  # it is told, as text


def test_a_file_that_grows_too_large_loses_single_clients_first_and_the_end_never(tmp_path):
    with EventStream() as stream:
        stream.attach(EventsFile(limit_of_clients=20_000, limit=40_000))
        stream.publish(started(tmp_path))
        for number in range(2_000):
            stream.tell(
                Replied, client="a", phase="training", round=number, bytes_up=1, bytes_down=1, seconds=0.1, loss=1.0
            )
            stream.tell(RoundClosed, round=number, num_rounds=2_000, problems={"a": "b" * 300})
        stream.publish(Finished(run="r", status="complete", round=2_000))

    found = kinds(tmp_path)
    assert found[-1] == "finished"
    assert found.count("replied") < 100 < 200 + found.count("round")
    assert found.count("note") == 1
    assert 40_000 <= (tmp_path / EVENTS).stat().st_size < 42_000
    assert not list(read_events(tmp_path))[-2].problems


def test_events_that_cannot_be_written_end_no_run(tmp_path, caplog, monkeypatch):
    def refuse(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventsFile, "_open", refuse)

    folder = run(tmp_path)

    assert summary(folder)["status"] == "complete"
    assert caplog.text.count("events.jsonl failed (OSError") == 1


def test_an_error_that_nobody_foresaw_is_told_by_its_kind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, listener=StopAfter(2, ZeroDivisionError))
    (folder,) = tmp_path.iterdir()

    last = list(read_events(folder))[-1]

    assert (last.kind, last.reason, last.round) == ("failed", "ZeroDivisionError", 2)


def test_what_is_no_event_is_left_out(tmp_path):
    for line in (b"[]", b"{}", b"\xff", b'{"event": "note"}', b"[" * 5000, b""):
        (tmp_path / EVENTS).write_bytes(line + b"\n" + json.dumps(Note(text="x").to_json()).encode())
        assert kinds(tmp_path) == ["note"]
    assert list(read_events(tmp_path / "none")) == []
    (tmp_path / "folder" / EVENTS).mkdir(parents=True)
    with pytest.raises(NufedError, match="cannot be read"):
        list(read_events(tmp_path / "folder"))
