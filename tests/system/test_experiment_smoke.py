"""A whole experiment with real worker processes: from suite to report, interrupted and resumed."""

import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path

import pytest

from nufed.common.errors import ConfigError
from nufed.deploy.commands.cli import main
from tests.system.forked import CLI, Forked
from tests.system.process_tree import descendants, wait_until_ended

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
FEW_ROUNDS = ["--set", "federation.num-rounds=4", "--set", "evaluation.interval=2", "--seeds", "2"]


class Command:
    """A command line that runs, with its output and what it says on stderr."""

    def __init__(self, *arguments: str, cwd: Path):
        self._said = [cwd / f"{name}-{secrets.token_hex(4)}.log" for name in ("out", "errors")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        log, errors = self._said
        self.process = Forked(CLI, arguments, log=log, errors=errors, environment=environment, folder=cwd)

    def finished(self, seconds: float) -> tuple[int, str, str]:
        """Return exit code, output and errors."""
        code = self.process.wait(seconds)
        out, errors = (path.read_text(encoding="utf-8") for path in self._said)
        return code, out, errors


def done_cells(folder: Path) -> dict[str, float]:
    return {path.parent.name: path.stat().st_mtime for path in folder.glob("cells/*/done.json")}


def test_a_suite_ends_in_tables_a_verdict_and_a_report_and_is_not_run_twice(tmp_path):
    code, out, err = Command("experiment", "smoke", "--json", *FEW_ROUNDS, cwd=tmp_path).finished(280)

    assert code == 0, err
    verdict = json.loads(out)
    folder = tmp_path / verdict["folder"]
    cells = done_cells(folder)
    assert set(verdict["methods"]) == {"fedavg", "per-fedavg", "meta-2", "fo-2", "one-step-2"}
    assert verdict["findings"]["H5"] == "no verdict: 2 seeds"
    assert len(cells) == 4 * 2 + 2 + 5 * 2  # four methods on two points, the follower on two, five on two seeds
    assert {path.name for path in folder.iterdir()} >= {"results.csv", "results.parquet", "report.html", "tuning.csv"}

    _, again, _ = Command("experiment", "smoke", "--json", *FEW_ROUNDS, cwd=tmp_path).finished(120)

    assert done_cells(folder) == cells
    assert json.loads(again)["methods"] == verdict["methods"]

    document, page = tmp_path / "results.md", folder.with_suffix(".md")
    document.write_text("# Mine\n", encoding="utf-8")
    codes = [main(["report", str(folder), "--markdown", str(document)]) for _ in range(2)]

    assert codes == [0, 0]
    assert document.read_text(encoding="utf-8").count("| [smoke](results/smoke.md) | 2 |") == 1
    assert page.read_text(encoding="utf-8").count("<!-- begin smoke -->\n## ") == 1
    (tmp_path / "other").write_text("no folder", encoding="utf-8")
    assert main(["report", str(folder), "--markdown", str(tmp_path / "other.md")]) == ConfigError.exit_code


def test_an_interrupted_suite_ends_at_once_without_a_traceback_and_goes_on_where_it_stopped(tmp_path):
    methods = ["--method", "fedavg", "--method", "per-fedavg"]
    arguments = ["experiment", "smoke", *FEW_ROUNDS, *methods]
    command = Command(*arguments, cwd=tmp_path)
    folder, deadline = tmp_path / "results" / "smoke", time.monotonic() + 120
    while len(done_cells(folder)) < 2 and time.monotonic() < deadline and command.process.poll() is None:
        time.sleep(0.05)  # polls what the processes have written

    command.process.send_signal(signal.SIGINT)
    code, _, err = command.finished(60)

    assert code != 0
    assert "Traceback" not in err
    before = done_cells(folder)
    assert 2 <= len(before) < 8

    code, out, err = Command(*arguments, cwd=tmp_path).finished(200)

    assert code == 0, err
    assert f"{len([name for name in before if '-1000-' in name])} of 4 runs are done already" in out
    after = done_cells(folder)
    assert len(after) == 4 + 4
    assert {name: after[name] for name in before} == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of processes")
def test_the_workers_of_a_killed_experiment_end_with_it(tmp_path):
    methods = ["--method", "fedavg", "--method", "per-fedavg"]
    process = Command("experiment", "smoke", *FEW_ROUNDS, *methods, cwd=tmp_path).process
    deadline = time.monotonic() + 120
    while not done_cells(tmp_path / "results" / "smoke") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)  # polls what the processes have written
    workers = descendants(process.pid)

    process.send_signal(signal.SIGKILL)
    process.wait(60)

    assert workers
    assert wait_until_ended(workers)
