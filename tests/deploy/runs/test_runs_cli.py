"""`nufed runs`: what is listed, shown, compared and removed, in whatever state the folders are."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from nufed.common.config import RunConfig
from nufed.common.methods import METHODS
from nufed.deploy.commands.cli import main
from nufed.deploy.runs import stored
from nufed.deploy.runs.stored import log_lines, method_of, read_stored
from nufed.server import hostile, outcome, resuming, run_log
from nufed.server.run_lock import locked

A_MONTH = 30 * 86_400


def copied(some_runs, tmp_path):
    return Path(shutil.copytree(some_runs, tmp_path / "runs"))


def said(capsys, *arguments, code=0):
    assert main(["runs", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def parsed(capsys, *arguments):
    return json.loads(said(capsys, *arguments, "--json"))


def make_old(folder):
    past = time.time() - 2 * A_MONTH
    for path in [*folder.iterdir(), folder]:
        os.utime(path, (past, past), follow_symlinks=False)


def test_names_of_files_are_those_that_a_run_writes():
    names = (stored.CONFIG, stored.ENVIRONMENT, stored.METRICS, stored.SUMMARY)

    assert names == (resuming.CONFIG, hostile.ENVIRONMENT, run_log.METRICS, outcome.SUMMARY)


def test_runs_are_listed_newest_first_with_what_came_out(some_runs, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = said(capsys, "list", some_runs).splitlines()
    listed = parsed(capsys, "list", some_runs)

    assert [run["name"] for run in listed] == ["waves", "one", "three"]
    assert [run["method"] for run in listed] == ["meta-fedavg-3", "per-fedavg", "meta-fedavg-3"]
    summary = json.loads((some_runs / listed[1]["run"] / "summary.json").read_text())
    for group in ("participating", "new"):
        curve = summary[group]["accuracy"]
        assert (listed[1]["groups"][group]["before"], listed[1]["groups"][group]["after"]) == (curve[0], curve[5])
        assert f"{100 * curve[0]:.1f} % → {100 * curve[5]:.1f} %" in lines[2]
    assert lines[1].split()[:4] == [listed[0]["run"], "complete", "3/3", "sinusoid"]
    assert len(parsed(capsys, "list", some_runs, "--limit", 2)) == 2


def test_one_run_is_shown_with_its_curves_and_the_options_that_are_not_the_defaults(some_runs, capsys):
    page = said(capsys, "show", "one", "--runs", some_runs)
    shown = parsed(capsys, "show", some_runs / "20260101-000001-one")

    assert "per-fedavg, seed 0" in page
    assert "method.num-inner-steps  1" in page
    assert "method.local-lr" not in page
    assert shown["options"] == RunConfig.load(some_runs / "20260101-000001-one/config.json").flat()
    assert len(shown["groups"]["new"]["curve"]) == 11


def test_what_a_run_withholds_is_said_and_is_neither_zero_nor_diverged(tmp_path, capsys):
    small = ["--quiet", "--clients", "4", "--new-clients", "3", "--rounds", "1", "--out", str(tmp_path)]
    private = ["--dp", "client", "--dp-clip", "1", "--dp-noise", "2"]
    assert main(["simulate", "--name", "secret", *small, *private]) == 0
    assert main(["simulate", "--name", "means", *small, *private, "--publish", "evaluation"]) == 0
    capsys.readouterr()

    shown = said(capsys, "show", "secret", "--runs", tmp_path)
    compared = said(capsys, "compare", "secret", "means", "--runs", tmp_path)
    listed = parsed(capsys, "list", tmp_path)

    assert "client-level ε = " in shown
    assert "withheld, as ε does not cover it: evaluation, client-curves, participants" in shown
    assert "0 B" not in shown
    assert compared.count("withheld") == 4 + 2  # all of one run; the worst tenth of both groups of the other
    assert "diverged" not in compared
    assert [run["privacy"]["rounds_charged"] for run in listed] == [1, 1]
    assert {run["name"]: "evaluation" in run["withheld"] for run in listed} == {"secret": True, "means": False}


def test_comparing_shows_results_and_differing_options_and_draws_a_figure(some_runs, tmp_path, capsys):
    names = ["three", "20260101-000001-one", "--runs", some_runs]

    page = said(capsys, "compare", *names, "--out", tmp_path / "both.svg")
    compared = parsed(capsys, "compare", *names)

    assert compared["options"] == {"method.num-inner-steps": [3, 1]}
    progress = compared["runs"][0]["progress"]["participating"]
    lines = (some_runs / "20260101-000000-three/metrics.jsonl").read_text().splitlines()
    curves = [json.loads(line)["evaluation"]["participating"]["accuracy"] for line in lines]
    assert progress[:2] == [[done, curve[0], curve[5]] for done, curve in enumerate(curves[:2], start=1)]
    (differing,) = (line for line in page.splitlines() if line.startswith("method."))
    assert differing.split() == ["method.num-inner-steps", "3", "1"]
    assert ET.parse(tmp_path / "both.svg").getroot().tag.endswith("svg")
    assert main(["runs", "compare", *map(str, names), "--out", str(tmp_path / "both.png")]) == 0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "other"], "Expected a run at 'other'"),
        (["show", "20260101-000001-onf"], "Did you mean '20260101-000001-one'?"),
        (["compare", "one"], "two runs or more"),
        (["compare", "one", "one"], "two runs or more"),
        (["compare", "one", "three", "--out", "figure.pdf"], "end in .png or .svg"),
        (["compare", "one", "waves", "--out", "figure.png"], "judged by accuracy and loss"),
        (["clean", "--older-than", "30"], "a number with m, h, d or w"),
        (["clean", "--older-than", "30d", "--json"], "--dry-run or --yes"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(some_runs, capsys, monkeypatch, arguments, words):
    monkeypatch.setenv("NUFED_OUT", str(some_runs))
    monkeypatch.chdir(some_runs)

    assert words in said(capsys, *arguments, code=2)
    assert not list(some_runs.glob("figure.*"))


def torn(path):
    path.write_bytes(path.read_bytes()[:100])


DAMAGES = {
    "config.json": [
        torn,
        lambda path: path.unlink(),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_bytes(b"\xff"),
    ],
    "summary.json": [torn, lambda path: path.write_text("{}"), lambda path: path.write_text('{"status": "complete"}')],
    "environment.json": [torn, lambda path: (path.unlink(), path.mkdir())],
}


@pytest.mark.parametrize(
    ("name", "damage"), [(name, damage) for name, damages in DAMAGES.items() for damage in damages]
)
def test_a_damaged_folder_is_shown_as_such_beside_the_others(some_runs, tmp_path, capsys, name, damage):
    root = copied(some_runs, tmp_path)
    damage(root / "20260101-000001-one" / name)

    listed = {run["run"]: run for run in parsed(capsys, "list", root)}

    assert listed["20260101-000001-one"]["status"] == "damaged"
    assert name in listed["20260101-000001-one"]["damage"]
    assert listed["20260101-000000-three"]["status"] == "complete"
    assert main(["runs", "list", str(root)]) == main(["runs", "show", str(root / "20260101-000001-one")]) == 0


def test_a_run_without_summary_is_running_while_its_folder_is_held_and_killed_after_that(some_runs, tmp_path):
    folder = copied(some_runs, tmp_path) / "20260101-000000-three"
    (folder / "summary.json").unlink()
    log = folder / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-200])  # the last line is being written

    with locked(folder):
        going_on = read_stored(folder)
    after = read_stored(folder)

    assert (going_on.status, after.status) == ("running", "killed")
    assert (going_on.rounds, going_on.num_rounds) == (2, 3)
    assert going_on.groups["participating"].after is not None


def test_lines_of_a_log_come_backwards_however_long_they_are(tmp_path):
    lines = [b"a" * length for length in (5, 70_000, 1, 200_000, 65_535)]
    (tmp_path / "log").write_bytes(b"\n".join([*lines, b"cut sho"]))

    assert list(log_lines(tmp_path / "log")) == lines[::-1]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_method_of_a_run_is_told_from_its_options(name):
    assert method_of(RunConfig().updated(METHODS[name].options()).flat()) == name


def test_clean_removes_old_runs_and_nothing_else(some_runs, tmp_path, capsys):
    root = copied(some_runs, tmp_path)
    old, running, young = (
        root / f"20260101-00000{number}-{name}" for number, name in enumerate(["three", "one", "waves"])
    )
    annotated, partial = root / "20260101-000003-notes", root / "20260101-000004-torn"
    for copy in (annotated, partial):
        shutil.copytree(old, copy)
    (annotated / "notes.txt").write_text("my thoughts")
    (partial / "config.json").unlink()
    (root / "20260101-000005-other").mkdir()
    (root / "results.csv").write_text("1,2")
    for name in ("shots.csv", "shots.png", "statistics.csv", "tracking.json", "tensorboard/events.out.tfevents.1.host"):
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).write_text("of the run")
    shutil.copytree(old, board := root / "20260101-000007-board")
    (board / "tensorboard" / "notes.txt").write_text("my thoughts")
    shutil.copytree(old, tmp_path / "elsewhere")
    (root / "20260101-000006-link").symlink_to(tmp_path / "elsewhere")
    for folder in (old, running, annotated, partial, board, tmp_path / "elsewhere", root / "20260101-000005-other"):
        make_old(folder)
    os.utime(root / "20260101-000006-link", (0, 0), follow_symlinks=False)
    before = {path.name for path in root.iterdir()}

    with locked(running):
        planned = parsed(capsys, "clean", root, "--older-than", "30d", "--dry-run")
        untouched = {path.name for path in root.iterdir()}
        removed = parsed(capsys, "clean", root, "--older-than", "30d", "--yes")

    assert [entry["folder"] for entry in planned["to_remove"]] == [str(old)]
    assert untouched == before
    reasons = {Path(entry["folder"]).name: entry["because"] for entry in removed["kept"]}
    assert "running" in reasons[running.name]
    assert "notes.txt" in reasons[annotated.name]
    assert "link" in reasons["20260101-000006-link"]
    assert "holds tensorboard" in reasons[board.name]
    assert {path.name for path in root.iterdir()} == before - {old.name}
    assert (tmp_path / "elsewhere/config.json").exists()
    assert young.exists()


def test_clean_asks_and_takes_no_for_an_answer(some_runs, tmp_path):
    root = copied(some_runs, tmp_path)
    for folder in root.iterdir():
        make_old(folder)
    program = "from nufed.deploy.commands.start import main; import sys; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "runs", "clean", str(root), "--older-than", "4w"]

    refused = subprocess.run(command, input="n\n", capture_output=True, text=True, timeout=60, check=False)
    agreed = subprocess.run(command, input="y\n", capture_output=True, text=True, timeout=60, check=False)

    assert (refused.returncode, agreed.returncode) == (130, 0)
    assert "Remove 3 runs?" in refused.stdout
    assert not list(root.iterdir())


def test_hundreds_of_folders_are_listed_within_a_second_and_without_pytorch(some_runs, tmp_path):
    source = some_runs / "20260101-000000-three"
    files = ["config.json", "environment.json", "metrics.jsonl", "summary.json"]
    for number in range(500):
        folder = tmp_path / f"20260102-{number:06d}-copy"
        folder.mkdir()
        for name in files:
            shutil.copyfile(source / name, folder / name)
    program = (
        "import sys, time; from pathlib import Path; from nufed.deploy.runs.catalog import stored_runs;"
        "import nufed.deploy.commands.runs; start = time.perf_counter(); runs = stored_runs(Path(sys.argv[1]));"
        "print(len(runs), time.perf_counter() - start, 'torch' in sys.modules)"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )

    number, seconds, has_torch = ran.stdout.split()
    assert (number, has_torch) == ("500", "False")
    assert float(seconds) < 3  # a third of a second on a machine with nothing else to do
