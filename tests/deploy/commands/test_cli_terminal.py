"""Claims about what a run shows."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.deploy.commands.terminal import JsonObserver, OutputOptions, TerminalObserver, closing_lines
from nufed.server.progress_lines import last_evaluation

CURVE = [0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95]
GROUP = {
    "num_clients": 20,
    "measure": "accuracy",
    "accuracy": CURVE,
    "loss": [2 - value for value in CURVE],
    "worst_decile": [value / 2 for value in CURVE],
}
SUMMARY = {
    "status": "complete",
    "rounds": 20,
    "primary_step": 5,
    "num_inner_steps": 2,
    "participating": GROUP,
    "new": {**GROUP, "num_clients": 10},
    "target_accuracy": None,
    "rounds_to_target": None,
    "problems": {"rejected": 0, "failed": 0, "missing": 0},
    "seconds": 12.34,
}
EVALUATED = {
    "round": 10,
    "problems": {},
    "seconds": 0.5,
    "evaluation": {"participating": {"measure": "accuracy", "accuracy": CURVE, "loss": CURVE}},
}
PLAIN = {**EVALUATED, "round": 11, "evaluation": None, "problems": {"client-004": "array 'w' contains NaN"}}
FOLDER = Path("runs/trial")


def shown(*, terminal, summary=SUMMARY, width=200):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width, highlight=False)
    with TerminalObserver(console) as observer:
        observer.on_start(RunConfig(), FOLDER, first_round=1)
        observer.on_round(EVALUATED)
        observer.on_round(PLAIN)
        observer.on_finish(summary, FOLDER)
    return stream.getvalue()


def test_a_pipe_gets_plain_lines_one_per_evaluation():
    lines = shown(terminal=False).splitlines()

    assert "round 10/60  accuracy 25.0 % → 95.0 %  0.5 s" in lines
    assert not any(line.startswith("round 11/60") for line in lines)
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_client_that_was_left_out_is_named_with_the_reason(terminal):
    assert "round 11: client-004 left out: array 'w' contains NaN" in shown(terminal=terminal)


def test_the_final_table_has_a_row_per_group_and_the_steps_that_count():
    text = shown(terminal=False)

    header = next(line for line in text.splitlines() if "s = 0" in line)
    assert [(header + " ").count(f"s = {step} ") for step in (0, 1, 2, 5, 10)] == [2, 1, 1, 1, 2]
    rows = [line.replace("%", "").split() for line in text.splitlines() if line.startswith(("participating ", "new "))]
    assert rows[0] == ["participating", "20", "25.0", "50.0", "75.0", "90.0", "95.0", "12.5", "47.5"]
    assert rows[1][:3] == ["new", "10", "25.0"]


def test_the_final_table_fits_a_terminal_of_80_columns():
    table = shown(terminal=False, width=80).partition("After s")[2]

    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80


def test_the_last_line_is_where_everything_is():
    assert shown(terminal=False).splitlines()[-1] == "12.3 s, runs/trial"


def test_a_terminal_gets_a_bar_that_counts_rounds():
    text = shown(terminal=True)

    assert "round 11/60" in text
    assert "accuracy 25.0 % → 95.0 %" in text


def test_an_interrupted_run_says_how_to_go_on():
    lines = closing_lines({**SUMMARY, "status": "interrupted"}, FOLDER)

    assert (
        lines[0]
        == "Interrupted after round 20. To go on, type --resume runs/trial in place of --out and the run's options."
    )


@pytest.mark.parametrize(("reached", "text"), [(0, "reached after round 0"), (None, "reached in none of 20 rounds")])
def test_the_target_is_reported_reached_or_not(reached, text):
    lines = closing_lines({**SUMMARY, "target_accuracy": 0.9, "rounds_to_target": reached}, FOLDER)

    assert lines[0] == f"accuracy 90.0 % {text}"


def test_replies_that_were_not_used_are_counted_at_the_end():
    lines = closing_lines({**SUMMARY, "problems": {"rejected": 3, "failed": 0, "missing": 1}}, FOLDER)

    assert lines[0] == "replies not used: 3 rejected, 1 missing"
    assert "method.max-grad-norm" in lines[1]


def test_regression_is_shown_as_loss_and_a_diverged_number_by_that_word():
    record = {"evaluation": {"participating": {"measure": "loss", "accuracy": None, "loss": [1.23456, None]}}}

    assert last_evaluation(record) == "loss 1.235 → diverged"


def test_a_run_whose_clients_all_stayed_away_ends_without_table():
    text = shown(terminal=False, summary={**SUMMARY, "participating": None, "new": None})

    assert "s = 0" not in text
    assert "12.3 s, runs/trial" in text


def test_json_is_one_object_with_the_folder_and_nothing_else():
    stream = io.StringIO()
    observer = JsonObserver(Console(file=stream, width=40))

    observer.on_start(RunConfig(), FOLDER, first_round=1)
    observer.on_round(PLAIN)
    observer.say("a note")
    observer.on_finish({**SUMMARY, "seconds": float("nan")}, FOLDER)

    assert json.loads(stream.getvalue()) == {"folder": "runs/trial", **SUMMARY, "seconds": None}


def test_quiet_says_nothing(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # tables are turned there
    with OutputOptions(quiet=True).observer() as observer:
        observer.on_start(RunConfig(), FOLDER, first_round=1)
        observer.on_round(PLAIN)
        observer.on_finish(SUMMARY, FOLDER)

    assert capsys.readouterr() == ("", "")


def test_quiet_and_json_contradict_each_other():
    with pytest.raises(ConfigError, match="--quiet contradicts --json"):
        OutputOptions.from_values({"out": None, "quiet": True, "json": True})
