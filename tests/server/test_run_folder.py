"""Claims about what a run leaves and how it is continued."""

import csv
import json
import math
import os
from datetime import UTC, datetime

import pytest
import torch

from nufed.common import __version__
from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.server.checkpoint import CHECKPOINT, save_checkpoint
from nufed.server.client_curves import ClientCurves
from nufed.server.run_folder import RunFolder, load_model

NOW = datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC)
CONFIG = RunConfig().replace(name="trial", method__num_inner_steps=2)
PARAMS = {"z.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([0.1, -0.0])}


def curves(client_id, group="participating", **changes):
    values = {
        "num_support": 30,
        "num_validation": 4,
        "num_test": 10,
        "test_loss": (1.0, 0.5),
        "test_accuracy": (0.1, 1.0),
    }
    return ClientCurves(client_id=client_id, group=group, **{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    with RunFolder.create(tmp_path / "runs", CONFIG, now=NOW) as folder:
        yield folder


def rounds_in(path):
    return [json.loads(line)["round"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_folder_is_named_by_time_and_run(folder, tmp_path):
    assert folder.path == tmp_path / "runs" / "20260301-123005-trial"


def test_runs_of_the_same_second_get_folders_of_their_own(folder, tmp_path):
    with RunFolder.create(tmp_path / "runs", CONFIG, now=NOW) as second:
        assert second.path.name == "20260301-123005-trial-2"


def test_its_config_gives_the_same_run_again(folder):
    assert RunConfig.load(folder.path / "config.json") == CONFIG


def test_the_environment_that_numbers_came_from_is_on_record(folder):
    environment = json.loads((folder.path / "environment.json").read_text())

    assert environment["nufed"] == __version__
    assert environment["torch"] == torch.__version__
    assert environment["num_threads"] == torch.get_num_threads()
    assert {"flwr", "python", "platform", "started"} <= environment.keys()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(RunError, match="--out"):
        RunFolder.create(tmp_path / "runs", CONFIG, now=NOW)


def test_a_file_in_the_place_of_the_output_folder_is_refused_naming_out(tmp_path):
    (tmp_path / "runs").write_text("")

    with pytest.raises(RunError, match=r"runs, but the system refused .*--out"):
        RunFolder.create(tmp_path / "runs", CONFIG, now=NOW)


def test_each_round_is_one_json_line_that_another_process_sees_at_once(folder):
    folder.append_round({"round": 1, "loss": 0.5, "problems": {"bob": "naïve\nreply"}})
    folder.append_round({"round": 2, "loss": 0.25, "problems": {}})

    lines = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()

    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.25]
    assert json.loads(lines[0])["problems"] == {"bob": "naïve\nreply"}


def test_numbers_that_are_not_finite_become_null_never_nan(folder):
    folder.append_round({"round": 1, "loss": math.nan, "clients": {"a": {"growth": [1.0, math.inf]}}})
    folder.write_summary({"rounds": 1, "seconds": -math.inf})

    line = (folder.path / "metrics.jsonl").read_text()
    summary = json.loads((folder.path / "summary.json").read_text())

    assert json.loads(line) == {"round": 1, "loss": None, "clients": {"a": {"growth": [1.0, None]}}}
    assert summary == {"status": "complete", "rounds": 1, "seconds": None}


def test_numpy_numbers_are_written_as_plain_ones(folder):
    import numpy as np

    folder.append_round({"round": np.int64(1), "loss": np.float32(0.5), "failed": np.bool_(False)})

    assert json.loads((folder.path / "metrics.jsonl").read_text()) == {"round": 1, "loss": 0.5, "failed": False}


def test_clients_csv_has_a_line_per_client_and_reads_back_exactly(folder):
    folder.write_clients([curves("n-1", "new", test_accuracy=(1 / 3, 0.1)), curves("b,1"), curves("a")])

    with (folder.path / "clients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert [row["client_id"] for row in rows] == ["a", "b,1", "n-1"]
    assert list(rows[0])[:5] == ["client_id", "group", "num_support", "num_validation", "num_test"]
    assert list(rows[0])[5:] == ["accuracy_0", "accuracy_1", "loss_0", "loss_1"]
    assert float(rows[2]["accuracy_0"]) == 1 / 3


def test_clients_csv_of_a_regression_has_no_accuracy_and_missing_validation_is_empty(folder):
    with_validation = curves("a", test_accuracy=None, validation_loss=(0.5, 0.25))
    folder.write_clients([with_validation, curves("b", test_accuracy=None)])

    with (folder.path / "clients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert list(rows[0])[5:] == ["loss_0", "loss_1", "validation_loss_0", "validation_loss_1"]
    assert [row["validation_loss_1"] for row in rows] == ["0.25", ""]


def test_the_model_reads_back_exactly_with_where_it_came_from(folder):
    folder.write_model(PARAMS, 60)

    for path in (folder.path, folder.path / "model.safetensors"):
        params, metadata = load_model(path)
        assert list(params) == list(PARAMS)
        assert all(torch.equal(params[name], PARAMS[name]) for name in PARAMS)
        assert metadata["round"] == 60
        assert RunConfig.parse(metadata["config"]) == CONFIG


def test_the_model_is_plain_safetensors_for_other_programs(folder):
    from safetensors.torch import load_file

    folder.write_model(PARAMS, 60)

    assert set(load_file(folder.path / "model.safetensors")) == set(PARAMS)


def test_a_checkpoint_is_no_model(folder):
    save_checkpoint(folder.path, round=1, params=PARAMS, history={})

    with pytest.raises(RunError, match="nufed-model-1"):
        load_model(folder.path / CHECKPOINT)


def test_a_missing_model_is_named(folder):
    with pytest.raises(RunError, match=r"model\.safetensors, but there is none"):
        load_model(folder.path)


def test_a_summary_says_complete_unless_told_otherwise(folder):
    folder.write_summary({"rounds": 60})
    complete = json.loads((folder.path / "summary.json").read_text())

    folder.write_summary({"rounds": 7, "status": "interrupted"})
    interrupted = json.loads((folder.path / "summary.json").read_text())

    assert complete == {"status": "complete", "rounds": 60}
    assert interrupted == {"status": "interrupted", "rounds": 7}


def test_a_resumed_run_is_not_called_complete_by_the_summary_of_before(folder):
    folder.write_summary({"rounds": 60})
    folder.close()

    with RunFolder.open_existing(folder.path):
        assert not (folder.path / "summary.json").exists()


def test_a_resumed_run_drops_what_lies_beyond_its_checkpoint_and_a_line_cut_short(folder):
    for number in (1, 2, 3):
        folder.append_round({"round": number})
    folder.close()
    save_checkpoint(folder.path, round=2, params=PARAMS, history={})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "lo')

    with RunFolder.open_existing(folder.path) as resumed:
        resumed.append_round({"round": 3})

    assert resumed.config == CONFIG
    assert rounds_in(folder.path) == [1, 2, 3]


def test_a_run_without_checkpoint_starts_over(folder):
    folder.append_round({"round": 1})
    folder.close()

    with RunFolder.open_existing(folder.path):
        pass

    assert rounds_in(folder.path) == []


def test_a_run_can_go_on_with_more_rounds(folder):
    longer = CONFIG.replace(federation__num_rounds=100)
    folder.close()

    with RunFolder.open_existing(folder.path, config=longer) as resumed:
        assert resumed.config == longer

    assert RunConfig.load(folder.path / "config.json") == longer


@pytest.mark.parametrize(("make", "reason"), [(False, "does not exist"), (True, r"folder without config\.json")])
def test_a_folder_that_no_run_left_cannot_be_resumed(tmp_path, make, reason):
    path = tmp_path / "other"
    if make:
        path.mkdir()

    with pytest.raises(RunError, match=rf"{reason}.*Name a folder that a run left"):
        RunFolder.open_existing(path)


def test_a_broken_line_in_the_middle_is_named_not_skipped(folder):
    folder.close()
    (folder.path / "metrics.jsonl").write_text('{"round": 1}\n{"rou\n{"round": 3}\n')

    with pytest.raises(RunError, match="line 2"):
        RunFolder.open_existing(folder.path)


def test_a_folder_that_is_being_written_is_refused_until_it_is_closed(folder):
    folder.append_round({"round": 1})
    save_checkpoint(folder.path, round=1, params=PARAMS, history={})

    with pytest.raises(RunError, match="another process is writing this run"):
        RunFolder.open_existing(folder.path)
    assert rounds_in(folder.path) == [1]

    folder.close()
    with RunFolder.open_existing(folder.path):
        pass


def test_a_folder_that_could_not_be_opened_is_free_again(folder):
    folder.close()
    (folder.path / "metrics.jsonl").write_text('{"round": 1}\n{"rou\n{"round": 3}\n')

    for _ in range(2):
        with pytest.raises(RunError, match="line 2"):
            RunFolder.open_existing(folder.path)
