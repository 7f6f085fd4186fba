"""What is said can be followed: advice that works when typed, and a word from everything that takes a while."""

import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, DataError, RunError
from nufed.deploy.commands.cli import main
from nufed.deploy.commands.heartbeat import Heartbeat
from nufed.deploy.commands.terminal import TerminalObserver, summary_table, turned_summary
from nufed.deploy.simulation.engines import prepare
from nufed.server.log_observer import LogObserver
from nufed.server.progress_lines import round_line
from tests.deploy.commands.test_cli_terminal import CURVE, EVALUATED, FOLDER, PLAIN, SUMMARY

CLIENT = ["client", "--server", "127.0.0.1:1", "--insecure", "--name", "a", "--wait", "0"]


@pytest.fixture(autouse=True)
def _workshop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("patients.csv").write_text("age,sex,disease\n61,f,yes\n")
    Path("header.csv").write_text("age,sex,disease\n")
    Path("text.npz").write_text("hello")
    Path("flat").mkdir()
    np.savez("fine.npz", x=np.ones((4, 2)), y=np.arange(4))
    Path("mine.py").write_text("def data(task):\n    return None\n")


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("csv:absent.csv?label=disease", DataError, "no such file"),
        ("csv:patients.csv", ConfigError, "Type ?label=COLUMN"),
        ("csv:patients.csv?label=deseases", ConfigError, "It has: age, sex, disease"),
        ("csv:header.csv?label=disease", DataError, "a header alone"),
        ("npz:text.npz", DataError, "archive written by numpy.savez"),
        ("npz:absent.npz", DataError, "archive written by numpy.savez"),
        ("images:flat", DataError, "one folder of images per class"),
        ("python:mine:date", ConfigError, "It has: data"),
        ("digitz#0/3", ConfigError, "Did you mean 'digits'?"),
    ],
)
def test_a_client_looks_at_its_data_before_it_dials(capsys, spec, error, said):
    code = main([*CLIENT, "--data", spec])

    assert code == error.exit_code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "spec",
    ["csv:patients.csv?label=disease", "npz:fine.npz", "python:mine:data", "digits#0/3", "csv:patients.csv?label=age"],
)
def test_data_that_are_there_let_it_dial(capsys, spec):
    main([*CLIENT, "--data", spec])

    assert "No server could be reached" in capsys.readouterr().err


def test_a_method_that_others_are_compared_with_is_asked_for_by_name_and_then_it_is_enough(capsys):
    code = main(["experiment", "two-groups-digits", "--out", "e", "--method", "fedavg"])

    advice = capsys.readouterr().err
    assert code == ConfigError.exit_code
    assert "suite two-groups-digits compares with. Add --method per-fedavg." in advice
    assert (
        main(
            [
                "experiment",
                "two-groups-digits",
                "--method",
                "fedavg",
                *re.findall(r"--method per-\w+", advice)[0].split(),
                "--out",
                "patients.csv",
            ]
        )
        == ConfigError.exit_code
    )
    assert "but patients.csv is a file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nosuch", "flat"])
def test_a_report_of_what_is_no_run_speaks_of_reports(capsys, name):
    code = main(["report", name])

    printed = capsys.readouterr().err
    assert code == RunError.exit_code
    assert f"an experiment or of a run at {name}" in printed
    assert "--resume" not in printed


def test_batches_larger_than_any_client_are_noted_before_they_cost_minutes():
    config = RunConfig().updated({"method.batch-size": 1000, "data.num-clients": 3, "data.num-new-clients": 1})

    notes = prepare(config).notes

    most = max(len(client.support) for client in prepare(config).clients)
    assert any(
        f"method.batch-size=1000 is more than the {most} examples of the largest client" in each for each in notes
    )
    assert not any("batch-size" in each for each in prepare(config.updated({"method.batch-size": most})).notes)
    private = prepare(config.updated({"privacy.dp": "record", "privacy.clip": 1.0, "privacy.noise": 1.0})).notes
    assert any("sampling hides nothing" in each for each in private)
    assert not any("several times over" in each for each in private)
    private = config.updated({"privacy.dp": "client", "privacy.clip": 1.0, "privacy.noise": 1.0})
    assert any("more than the number of examples" in each for each in prepare(private).notes)  # which is withheld


def test_what_takes_long_says_what_it_is_at_growing_intervals_until_something_else_is_said():
    said = []
    with Heartbeat(said.append, "loading", first=0.02) as heartbeat:
        deadline = time.monotonic() + 20
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        heartbeat.now("")
        silent = len(said)
        time.sleep(0.1)

    assert silent >= 2
    assert len(said) <= silent + 1
    assert all(re.fullmatch(r"loading, for \d+ s so far", line) for line in said)


@pytest.mark.parametrize("width", [40, 70, 80, 200])
def test_the_final_numbers_are_all_there_at_any_width(width):
    stream = io.StringIO()
    with TerminalObserver(Console(file=stream, width=width)) as observer:
        observer.on_finish(SUMMARY, FOLDER)

    table = stream.getvalue().partition("clients):")[2].splitlines()[1:-1]
    assert max(map(cell_len, table)) <= width
    assert "…" not in "".join(table)
    numbers = set(re.findall(r"[\d.]+ %", "\n".join(table)))
    assert {f"{100 * CURVE[step]:.1f} %" for step in (0, 1, 2, 5, 10)} <= numbers
    assert {"12.5 %", "47.5 %"} <= numbers
    assert {"20", "10"} <= set(" ".join(table).split())


def test_the_turned_table_has_the_same_numbers_as_the_wide_one():
    _, rows = turned_summary(SUMMARY)

    wide = summary_table(SUMMARY)
    cells = [cell for column in wide.columns[1:] for cell in column.cells]
    assert sorted(cells) == sorted(cell for row in rows for cell in row[1:])


def test_a_round_without_evaluation_has_a_line_if_it_is_the_first_the_last_or_due():
    stream = io.StringIO()
    observer = TerminalObserver(Console(file=stream, width=200))

    with observer:
        observer.on_start(RunConfig(), FOLDER, first_round=1)
        for done in (1, 2, 3, 60):
            observer.on_round({**PLAIN, "round": done, "problems": {}, "loss": 0.5, "replied": 2})

    lines = [line for line in stream.getvalue().splitlines() if line.startswith("round")]
    assert lines == [f"round {done}/60  training loss 0.5  0.5 s" for done in (1, 60)]


def test_a_round_in_which_no_reply_was_used_does_not_speak_of_a_loss():
    assert round_line({**PLAIN, "loss": None, "replied": 0}, 60) == "round 11/60  no reply was used  0.5 s"


def test_flowers_log_is_told_the_rounds_the_result_and_the_folder(caplog):
    observer = LogObserver()
    with caplog.at_level("INFO", logger="flwr"):
        observer.on_start(RunConfig(), FOLDER, first_round=1)
        observer.on_round(EVALUATED)
        observer.on_round({**PLAIN, "loss": 0.25, "replied": 1})
        observer.on_finish(SUMMARY, FOLDER)

    said = [record.getMessage() for record in caplog.records]
    assert said[1] == f"folder {FOLDER.absolute()}"
    assert said[2:5] == [
        "round 10/60  accuracy 25.0 % → 95.0 %  0.5 s",
        "round 11: client-004 left out: array 'w' contains NaN",
        "round 11/60  training loss 0.25  0.5 s",
    ]
    assert said[5] == "20 participating clients: accuracy 25.0 % → 95.0 % after fine-tuning"
    assert said[-1].endswith(str(FOLDER.absolute()))
