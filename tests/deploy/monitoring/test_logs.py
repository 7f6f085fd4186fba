"""Logs: lines of JSON that carry what they are about, and nothing that acts on a terminal in either format."""

import io
import json
import logging
import threading
import warnings

import pytest

from nufed.common.events import EventStream, Note, Rejected, RoundClosed, Started
from nufed.deploy.commands import cli
from nufed.deploy.commands.cli import main
from nufed.deploy.monitoring.logs import LogContext, LogSink, describe_event, error_line, logging_as

HOSTILE = "<script>alert(1)</script>\x1b]0;owned\x07\x9b31m\u202e\r\n" + "A" * 2**20
SMALL = ["simulate", "--clients", "3", "--new-clients", "1", "--rounds", "2", "--model", "linear"]
STARTED = Started(
    run="r", folder="/runs/r", options={}, engine="local", first_round=1, num_rounds=9, measure="accuracy"
)


def is_sane(text):
    return all(line.isprintable() and len(line) < 12_000 for line in text.splitlines())


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_is_logged_as_json_lines_that_carry_run_round_client_event_and_time(tmp_path, capsys):
    assert main([*SMALL, "--out", str(tmp_path), "--log-format", "json", "--log-level=debug"]) == 0

    printed = capsys.readouterr()
    told = json_lines(printed.out)
    (folder,) = tmp_path.iterdir()
    assert not printed.err
    for line in told:
        assert {"time", "level", "event", "run", "round", "client", "message"} <= line.keys()
    after_start = told[[line["event"] for line in told].index("started") :]
    assert {line["run"] for line in after_start} == {folder.name}
    replied = [line for line in told if line["event"] == "replied" and line["round"] == 2]
    assert len({line["client"] for line in replied}) > 1
    assert {line["level"] for line in replied} == {"debug"}
    assert told[-1]["event"] == "finished"
    assert is_sane(printed.out)


def test_levels_leave_out_what_is_below_them(tmp_path, capsys):
    for level, expected in (("info", {"info"}), ("warning", set())):
        assert main([*SMALL, "--out", str(tmp_path / level), "--log-format", "json", "--log-level", level]) == 0
        assert {line["level"] for line in json_lines(capsys.readouterr().out)} == expected

    assert main([*SMALL, "--out", str(tmp_path / "text"), "--log-level", "warning"]) == 0
    assert not capsys.readouterr().out
    assert main([*SMALL, "--out", str(tmp_path / "debug"), "--log-level", "debug"]) == 0
    assert "client-000 has answered evaluation" in capsys.readouterr().out


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_hostile_text_is_sane_in_every_line(log_format, capsys):
    events, shown = EventStream(), io.StringIO()
    with logging_as(log_format, "debug") as context, events:
        events.listen(context.take)
        events.attach(LogSink(log_format, "debug", context, shown), patience=None)
        events.publish(STARTED)
        events.say("\x1b[31m" + HOSTILE[:300])
        about = {"client": "a", "phase": "training", "round": 3}
        events.tell(Rejected, outcome="rejected", reason=HOSTILE[:60], **about)
        logging.getLogger("nufed.x").warning("%s", HOSTILE[:300])
        logging.getLogger("flwr").error("a library: %s", "\x1b[2J", exc_info=ValueError(HOSTILE))

    everything = shown.getvalue() + capsys.readouterr().err
    controls = set(map(chr, [*range(32), *range(127, 160), 0x202E])) - {"\n", "\t"}
    assert not controls & set(everything)
    assert "script" in everything
    if log_format == "json":
        told = json_lines(everything)
        assert [line["round"] for line in told if line["event"] == "log"] == [3, 3]
        assert all(len(line) < 20_000 for line in everything.splitlines())


def test_every_error_of_a_command_is_one_json_line(tmp_path, capsys, monkeypatch):
    def broken(*_args, **_rest):
        raise ZeroDivisionError(HOSTILE)

    for typed, code in (
        ([*SMALL, "--log-format", "json", "--set", "model.name=nothing", "--out", str(tmp_path)], 2),
        ([*SMALL, "--log-format=json", "--no-such-flag"], 2),
    ):
        assert main(typed) == code
        [line] = json_lines(capsys.readouterr().err)
        assert (line["event"], line["level"], line["exit_code"]) == ("error", "error", code)
        assert "traceback" not in line
    monkeypatch.setattr(cli, "watched", broken)
    assert main([*SMALL, "--log-format", "json"]) == 1
    [line] = json_lines(capsys.readouterr().err)
    assert "ZeroDivisionError" in line["traceback"]
    assert line["message"].startswith("ZeroDivisionError: <script>")
    assert len(json.dumps(line)) < 20_000
    with pytest.raises(ZeroDivisionError):  # as text Python itself shows a bug
        main(SMALL)


def test_what_threads_raise_and_libraries_warn_of_is_json_too(capsys):
    with logging_as("json", "info", LogContext(client="here")), warnings.catch_warnings():
        warnings.simplefilter("always")
        thread = threading.Thread(target=lambda: 1 / 0, name="worker")
        thread.start()
        thread.join()
        warnings.warn("beware", UserWarning, stacklevel=1)

    failed, warned = json_lines(capsys.readouterr().err)

    assert failed["message"] == "worker has failed"
    assert "ZeroDivisionError" in failed["traceback"]
    assert "beware" in warned["message"]
    assert failed["client"] == "here"


def test_logging_is_left_as_it_was():
    flower, ours, root = (logging.getLogger(name) for name in ("flwr", "nufed", ""))
    before = [(logger.level, logger.handlers[:], logger.propagate) for logger in (flower, ours, root)]

    with logging_as("json", "debug"):
        assert root.handlers != before[2][1]

    assert [(logger.level, logger.handlers[:], logger.propagate) for logger in (flower, ours, root)] == before


def test_every_event_is_told_in_one_line_of_words():
    closed = RoundClosed(round=1, num_rounds=2, replied=1, loss=0.5)

    assert describe_event(closed) == "round 1/2  training loss 0.5  0.0 s"
    assert "\x1b" not in describe_event(Note(text="\x1b[31m"))
    assert json.loads(error_line("x", 3))["exit_code"] == 3


def test_unknown_formats_and_levels_are_refused(capsys):
    assert main(["simulate", "--log-format", "xml"]) == 2
    assert "Unknown --log-format 'xml'. Known: json, text." in capsys.readouterr().err
    assert main(["simulate", "--log-level", "loud"]) == 2
