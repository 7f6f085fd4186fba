"""Tracking: what TensorBoard, MLflow and W&B have of a run, read back with their own readers."""

import importlib.util
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import ClassVar

import pytest

import nufed
from nufed.common.errors import ConfigError
from nufed.common.events import EventStream
from nufed.deploy.commands.cli import main
from nufed.deploy.monitoring import tracking
from nufed.deploy.monitoring.tracking import TRACKED, check_tracking, tracked
from tests.deploy.dashboard.pages_made import private_events
from tests.server.test_run import StopAfter, run, summary

SMALL = ["--clients", "3", "--new-clients", "1", "--rounds", "2", "--set", "evaluation.interval=1"]


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


def read_board(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return board


@needs("tensorboard")
def test_tensorboard_has_the_configuration_both_groups_metrics_and_the_picture(tmp_path):
    assert main(["simulate", "--quiet", *SMALL, "--track", "tensorboard", "--out", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()

    board, final = read_board(folder / "tensorboard"), summary(folder)

    for group in ("participating", "new"):
        for adaptation, step in (("before", 0), ("after", final["primary_step"])):
            scalars = board.Scalars(f"{group}/accuracy/{adaptation}")
            assert scalars[-1].value == pytest.approx(final[group]["accuracy"][step])
            assert scalars[-1].step == 2
    assert [each.step for each in board.Scalars("training/loss")] == [1, 2]
    text = board.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| data.num-clients | 3 |" in text
    assert board.Tags()["images"] == ["curves"]


def test_a_private_round_has_its_epsilon_and_nothing_that_is_withheld():
    assert tracking._of_round(private_events()[-1]) == {"costs/seconds": 1.0, "privacy/epsilon": 3.0}


@needs("tensorboard")
def test_a_resumed_run_goes_on_in_its_record_and_rounds_that_are_done_again_are_there_once(tmp_path):
    with pytest.raises(ZeroDivisionError), EventStream() as events, tracked(events, ["tensorboard"]):
        run(tmp_path, events=events, listener=StopAfter(3, ZeroDivisionError))
    (folder,) = tmp_path.iterdir()
    with EventStream() as events, tracked(events, ["tensorboard"]):
        run(tmp_path, resume=folder, events=events)

    board = read_board(folder / "tensorboard")

    assert [each.step for each in board.Scalars("training/loss")] == [1, 2, 3, 4]
    assert json.loads((folder / TRACKED).read_text()) == {"tensorboard-0": str(folder / "tensorboard")}


@needs("tensorboard")
def test_an_experiment_is_a_parent_with_its_final_runs_below_it(tmp_path):
    suite = tmp_path / "two.toml"
    suite.write_text(
        'name = "two"\ntitle = "Two"\nabout = "Two methods."\nseeds = 2\nreference = "fedavg"\nbaseline = "fedavg"\n'
        '[options]\n"data.num-clients" = 3\n"data.num-new-clients" = 2\n"federation.num-rounds" = 1\n'
        '"model.hidden-sizes" = "4"\n[[methods]]\nname = "fedavg"\nlabel = "FedAvg"\n'
        'options = { "method.num-inner-steps" = 0 }\n'
        '[[methods]]\nname = "one"\nlabel = "One"\noptions = { "method.num-inner-steps" = 1 }\n'
    )
    out = tmp_path / "out"

    assert main(["experiment", str(suite), "--quiet", "--out", str(out), "--track", "tensorboard"]) == 0

    boards = sorted(path.name.rpartition("-")[0] for path in (out / "tensorboard").iterdir() if path.is_dir())
    assert boards == ["", "fedavg-0", "fedavg-1", "one-0", "one-1"]
    told = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    cells = [event for event in told if event["event"] == "cell"]
    assert [event["done"] for event in cells] == [1, 2, 3, 4]
    assert all(0 <= event["results"]["new"]["accuracy"][1] <= 1 for event in cells)
    assert {event["run"] for event in told} == {"out"}
    assert [event["event"] for event in told if event["event"] != "phase"][-1] == "finished"
    assert next(path for path in (out / "cells").rglob("events.jsonl"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def mlflow_server(folder):
    port = free_port()
    typed = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    typed += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(typed, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.system
@needs("mlflow")
def test_mlflow_has_the_configuration_both_groups_metrics_and_the_files(tmp_path):
    from mlflow.tracking import MlflowClient

    with mlflow_server(tmp_path) as uri:
        assert main(["simulate", "--quiet", *SMALL, "--track", f"mlflow:{uri}", "--out", str(tmp_path / "runs")]) == 0
        (folder,) = (tmp_path / "runs").iterdir()
        client = MlflowClient(uri)
        [found] = client.search_runs([client.get_experiment_by_name("nufed").experiment_id])
        history = client.get_metric_history(found.info.run_id, "participating/accuracy/after")
        files = {each.path for each in client.list_artifacts(found.info.run_id)}

    final = summary(folder)
    assert (found.info.run_name, found.info.status) == (folder.name, "FINISHED")
    assert found.data.params["data.num-clients"] == "3"
    assert found.data.metrics["new/accuracy/after"] == pytest.approx(final["new"]["accuracy"][final["primary_step"]])
    assert {each.step for each in history} == {0, 1, 2}
    assert {"summary.json", "clients.csv", "model.safetensors", "curves.png", "config.json"} <= files


@needs("mlflow")
def test_a_tracking_server_that_is_down_is_warned_of_once_and_the_run_goes_on(tmp_path, caplog):
    typed = ["simulate", "--quiet", *SMALL, "--track", f"mlflow:http://127.0.0.1:{free_port()}", "--out"]

    assert main([*typed, str(tmp_path)]) == 0

    assert summary(next(tmp_path.iterdir()))["status"] == "complete"
    assert caplog.text.count("MLflow failed") == 1


def wandb_records(path):
    """Yield the records of W&B's own file, which is a log of LevelDB's format behind a header of 7 bytes."""
    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if kind == 0:
            break
        parts = (parts if kind in (3, 4) else b"") + content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts


@needs("wandb")
def test_wandb_records_a_run_offline(tmp_path, monkeypatch):
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["simulate", "--quiet", *SMALL, "--track", "wandb", "--out", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()

    [record] = folder.glob("wandb/offline-run-*/*.wandb")
    logged, options = {}, set()
    for content in wandb_records(record):
        message = wandb_internal_pb2.Record()
        message.ParseFromString(content)
        for item in message.history.item:
            logged["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        options |= {item.key or item.nested_key[0] for item in message.run.config.update}
    final = summary(folder)
    assert logged["new/accuracy/after"] == pytest.approx(final["new"]["accuracy"][final["primary_step"]])
    assert logged["participating/accuracy/before"] == pytest.approx(final["participating"]["accuracy"][0])
    assert "data.num-clients" in options


class Failing:
    """A tool whose server is down, but for its beginning."""

    calls: ClassVar[list] = []

    def begin(self, _run):
        self.calls.append("begin")
        return "name"

    def log(self, step, _metrics):
        self.calls.append(step)
        raise ConnectionError("\x1b[31mdown")

    def end(self, status, files):
        self.calls.append((status, sorted(path.name for path in files)))


def test_a_tool_that_fails_is_let_alone_for_a_while_and_told_how_the_run_ended(tmp_path, monkeypatch, caplog):
    tool = tracking._Tool("Failing", "json", lambda _address: Failing())
    monkeypatch.setitem(tracking.TOOLS, "failing", tool)
    Failing.calls = []

    with EventStream() as events, tracked(events, check_tracking(["failing", "failing"])):
        folder = run(tmp_path, events=events)

    assert summary(folder)["status"] == "complete"
    assert [each for each in Failing.calls if each == "begin"] == ["begin"]
    assert Failing.calls[1:] == [
        0,
        ("complete", ["clients.csv", "config.json", "curves.png", "model.safetensors", "summary.json"]),
    ]
    assert caplog.text.count("Failing failed (ConnectionError") == 1
    assert "\x1b" not in caplog.text


def test_what_is_not_installed_or_unknown_is_said_before_the_run_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    for typed in (["simulate"], ["experiment", "smoke"], ["server", "--insecure"]):
        assert main([*typed, "--track", "mlflow", "--out", str(tmp_path / "none")]) == 2
        needed = "--track mlflow needs MLflow, which is not installed: pip install 'nufed[mlflow]'.\n"
        assert capsys.readouterr().err == f"nufed: {needed}"
    assert not (tmp_path / "none").exists()
    for wrong in ("nothing", "wandb:http://x", "tensorboard:x", "mlflow:", ""):
        with pytest.raises(ConfigError, match="--track"):
            check_tracking([wrong])
    with pytest.raises(ConfigError, match="nufed\\[wandb\\]"):
        nufed.simulate("sinusoid", track=["wandb"], num_rounds=1, progress=False)


@needs("tensorboard")
def test_python_tracks_as_the_command_does(tmp_path):
    done = nufed.simulate(
        "digits", "linear", num_clients=2, num_rounds=1, out=tmp_path, progress=False, track="tensorboard"
    )

    assert read_board(done.path / "tensorboard").Scalars("participating/loss/after")
