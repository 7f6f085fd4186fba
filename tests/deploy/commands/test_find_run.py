"""A supervisor's command finds the run that it began, and no other."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from nufed.common.config import RunConfig
from nufed.deploy.commands.cli import main
from nufed.deploy.commands.find_run import FoundRun, find_run
from nufed.server.run_folder import RunFolder

CONFIG = RunConfig().updated({"name": "hospitals", "federation.num-rounds": 3})
NOON = datetime(2031, 5, 6, 12, tzinfo=UTC)


def leave_run(out, config=CONFIG, *, rounds_done=1, status=None, hours=0):
    """Leave the folder of a run that got as far as `rounds_done` and ended with `status`, or was killed."""
    with RunFolder.create(out, config, now=NOON + timedelta(hours=hours)) as folder:
        for number in range(1, rounds_done + 1):
            folder.append_round({"round": number})
        folder.save_checkpoint(round=rounds_done, params={}, history={})
        if status:
            folder.write_summary({"status": status, "rounds": rounds_done})
        return folder.path


def test_a_first_start_finds_nothing(tmp_path):
    assert find_run(tmp_path / "runs", CONFIG) is None
    assert find_run(tmp_path, CONFIG) is None


@pytest.mark.parametrize("status", [None, "interrupted"])
def test_a_killed_or_stopped_run_is_gone_on_with(tmp_path, status):
    folder = leave_run(tmp_path, status=status)

    assert find_run(tmp_path, CONFIG) == FoundRun(folder, complete=False)


def test_a_complete_run_is_not_begun_anew_unless_more_rounds_are_asked_for(tmp_path):
    folder = leave_run(tmp_path, rounds_done=3, status="complete")

    assert find_run(tmp_path, CONFIG) == FoundRun(folder, complete=True)
    assert find_run(tmp_path, CONFIG.updated({"federation.num-rounds": 5})) == FoundRun(folder, complete=False)


def test_a_run_killed_between_its_last_round_and_its_summary_is_not_complete(tmp_path):
    folder = leave_run(tmp_path, rounds_done=3)

    assert find_run(tmp_path, CONFIG) == FoundRun(folder, complete=False)


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "hospitals-2"}, {"method.inner-lr": 0.2}])
def test_other_options_are_another_run(tmp_path, other):
    leave_run(tmp_path, CONFIG.updated(other))

    assert find_run(tmp_path, CONFIG) is None


def test_the_newest_of_equal_runs_is_found(tmp_path):
    leave_run(tmp_path, hours=1)
    newest = leave_run(tmp_path, hours=2)
    leave_run(tmp_path, CONFIG.updated({"seed": 1}), hours=3)

    assert find_run(tmp_path, CONFIG) == FoundRun(newest, complete=False)


def test_a_folder_whose_options_were_not_written_is_passed_over(tmp_path):
    (tmp_path / "20310506-120000-hospitals").mkdir()

    assert find_run(tmp_path, CONFIG) is None


def test_the_server_ends_at_once_where_its_run_is_complete(tmp_path, capsys):
    folder = leave_run(tmp_path, rounds_done=3, status="complete")
    before = json.loads((folder / "summary.json").read_text())

    code = main(["server", "--resume-or-start", "--name", "hospitals", "--rounds", "3", "--out", str(tmp_path)])

    assert code == 0
    assert capsys.readouterr().out == f"the run in {folder} is complete\n"
    assert json.loads((folder / "summary.json").read_text()) == before


def test_fewer_rounds_than_done_are_refused(tmp_path, capsys):
    leave_run(tmp_path, rounds_done=2)

    code = main(["server", "--resume-or-start", "--name", "hospitals", "--rounds", "1", "--out", str(tmp_path)])

    assert code != 0
    assert "--rounds=1 is fewer than the 2 rounds" in capsys.readouterr().err


def test_finding_the_folder_contradicts_naming_it(tmp_path, capsys):
    folder = leave_run(tmp_path)

    code = main(["server", "--resume-or-start", "--resume", str(folder), "--insecure"])

    assert code != 0
    assert "contradicts --resume" in capsys.readouterr().err
