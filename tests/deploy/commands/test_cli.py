"""Claims about the command line: what it prints, what it leaves, how it ends."""

import csv
import json

import pytest

from nufed.common.config import RunConfig, option_descriptions
from nufed.common.errors import RunError
from nufed.common.events import EventStream, RoundClosed
from nufed.common.methods import METHODS
from nufed.deploy.commands import cli
from nufed.deploy.commands.cli import main
from nufed.server.run_folder import load_model

SMALL = [
    "simulate",
    *("--clients", "3", "--new-clients", "2", "--partition", "iid", "--rounds", "3", "--fraction", "0.67"),
    *("--inner-steps", "1", "--local-steps", "2", "--adapt-steps", "2"),
    *("--set", "evaluation.primary-step=1", "--set", "evaluation.interval=1"),
]


def simulate(tmp_path, *more):
    return main([*SMALL, "--out", str(tmp_path), *more])


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_simulation_leaves_all_its_files(tmp_path):
    code = simulate(tmp_path, "--quiet")

    [folder] = tmp_path.iterdir()
    assert code == 0
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "events.jsonl",
        "checkpoint.safetensors",
        "clients.csv",
        "model.safetensors",
        "curves.png",
        "summary.json",
    }
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in rounds] == [1, 2, 3]
    assert all(record["sampled"] == record["replied"] == 2 for record in rounds)
    with (folder / "clients.csv").open(newline="") as file:
        groups = [row["group"] for row in csv.DictReader(file)]
    assert groups == ["participating"] * 3 + ["new"] * 2


def test_the_summary_has_the_final_curves_of_both_groups_and_what_they_cost(tmp_path):
    simulate(tmp_path, "--quiet", "--set", "evaluation.target-accuracy=1.0")

    [folder] = tmp_path.iterdir()
    summary = summary_of(folder)
    assert (summary["status"], summary["rounds"], summary["primary_step"]) == ("complete", 3, 1)
    assert [summary[group]["num_clients"] for group in ("participating", "new")] == [3, 2]
    assert len(summary["participating"]["accuracy"]) == len(summary["new"]["spread"]) == 3
    assert summary["rounds_to_target"] is None
    # 3 rounds, 2 clients, τ = 2 steps of ν + 1 = 2 gradients and ν = 1 Hessian-vector product
    assert (summary["costs"]["gradient_evaluations"], summary["costs"]["hvps"]) == (24, 12)
    assert summary["costs"]["bytes_up"] == summary["costs"]["bytes_down"] > 0


def test_its_config_file_gives_the_same_model_bit_for_bit(tmp_path):
    simulate(tmp_path / "first", "--quiet")
    [first] = (tmp_path / "first").iterdir()

    main(["simulate", "--quiet", "--config", str(first / "config.json"), "--out", str(tmp_path / "second")])

    [second] = (tmp_path / "second").iterdir()
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert (second / "clients.csv").read_bytes() == (first / "clients.csv").read_bytes()


def test_json_prints_the_summary_and_nothing_else(tmp_path, capsys):
    code = simulate(tmp_path, "--json")

    printed = capsys.readouterr()
    [folder] = tmp_path.iterdir()
    assert code == 0
    assert json.loads(printed.out) == {"folder": str(folder), **summary_of(folder)}
    assert printed.err == ""


def test_quiet_prints_nothing(tmp_path, capsys):
    simulate(tmp_path, "--quiet")

    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_progress_table_and_folder(tmp_path, capsys):
    simulate(tmp_path)

    lines = capsys.readouterr().out.splitlines()
    [folder] = tmp_path.iterdir()
    assert any(line.startswith("round 3/3  accuracy ") for line in lines)
    assert any(line.startswith("participating ") for line in lines)
    assert lines[-1].endswith(str(folder))


def interrupted_at(monkeypatch, round_done):
    def stop(self, event):
        publish(self, event)
        if isinstance(event, RoundClosed) and event.round == round_done:
            raise KeyboardInterrupt

    publish = EventStream.publish
    monkeypatch.setattr(EventStream, "publish", stop)


def test_ctrl_c_leaves_a_whole_folder_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    interrupted_at(monkeypatch, 2)

    code = simulate(tmp_path)

    [folder] = tmp_path.iterdir()
    printed = capsys.readouterr()
    assert code == 130
    assert (summary_of(folder)["status"], summary_of(folder)["rounds"]) == ("interrupted", 2)
    assert load_model(folder)[1]["round"] == 2
    assert f"Interrupted after round 2. To go on, type --resume {folder}" in printed.out
    assert "Traceback" not in printed.err


def test_a_resumed_run_ends_like_one_that_was_never_interrupted(tmp_path, monkeypatch):
    simulate(tmp_path / "whole", "--quiet")
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        simulate(tmp_path / "parts", "--json")
    [whole], [parts] = (tmp_path / "whole").iterdir(), (tmp_path / "parts").iterdir()

    code = main(["simulate", "--quiet", "--resume", str(parts)])

    assert code == 0
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (parts / "clients.csv").read_bytes() == (whole / "clients.csv").read_bytes()
    timed = {"seconds", "clients", "evaluation"}
    rounds = [
        [{k: v for k, v in json.loads(line).items() if k not in timed} for line in text.splitlines()]
        for text in ((folder / "metrics.jsonl").read_text() for folder in (parts, whole))
    ]
    assert rounds[0] == rounds[1]
    assert {**summary_of(parts), "seconds": 0} == {**summary_of(whole), "seconds": 0}


def test_a_complete_run_goes_on_with_more_rounds(tmp_path):
    simulate(tmp_path / "long", "--quiet", "--rounds", "3")
    simulate(tmp_path / "short", "--quiet", "--set", "federation.num-rounds=3")
    [long], [short] = (tmp_path / "long").iterdir(), (tmp_path / "short").iterdir()

    code = main(["simulate", "--quiet", "--resume", str(short), "--rounds", "5"])

    assert code == 0
    assert summary_of(short)["rounds"] == 5
    assert RunConfig.load(short / "config.json").federation.num_rounds == 5
    assert summary_of(long)["rounds"] == 3


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("models", ["mlp", "cnn", "linear", "module:function"]),
        ("datasets", ["digits", "mnist", "npz:PATH", "quadratic"]),
        ("estimators", ["exact", "unrolled", "first-order", "hessian-free"]),
        ("methods", list(METHODS)),
        ("options", list(option_descriptions())),
    ],
)
def test_lists_name_everything_there_is(command, expected, capsys):
    code = main([command])

    printed = capsys.readouterr().out
    assert code == 0
    assert all(name in printed for name in expected)


def test_the_version_names_what_numbers_depend_on(capsys):
    code = main(["--version"])

    printed = capsys.readouterr().out
    assert code == 0
    assert printed.startswith("nufed ")
    assert "flwr 1." in printed
    assert "torch 2." in printed


def test_help_of_simulate_gives_the_papers_symbols(capsys):
    code = main(["simulate", "--help"])

    printed = capsys.readouterr().out
    assert code == 0
    assert all(symbol in printed for symbol in ("ν,", "α,", "β,", "τ,", "K,", "r,", "S,"))


def test_a_bare_command_shows_the_help(capsys):
    code = main([])

    assert code == 2
    assert "simulate" in capsys.readouterr().out


def test_an_error_is_one_line_and_debug_adds_where_it_came_from(tmp_path, capsys):
    code = main(["simulate", "--resume", str(tmp_path)])
    plain = capsys.readouterr()
    main(["simulate", "--resume", str(tmp_path), "--debug"])
    debugged = capsys.readouterr()

    assert code == RunError.exit_code
    assert len(plain.err.splitlines()) == 1
    assert plain.err.startswith("nufed: Expected a run folder at")
    assert "Traceback" in debugged.err
    assert debugged.err.endswith(plain.err)


def test_a_bug_of_ours_is_not_dressed_up_as_an_explanation(monkeypatch):
    def broken(_text):
        raise ZeroDivisionError

    monkeypatch.setattr(cli.typer, "echo", broken)

    with pytest.raises(ZeroDivisionError):
        main(["models"])
