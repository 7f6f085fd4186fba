"""Metrics are computed by every engine and stand in everything that a run leaves, with what they are compared with."""

import json

import pytest
import torch
from rich.console import Console

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, NufedError
from nufed.common.events import EventStream
from nufed.deploy.commands.terminal import TerminalObserver
from nufed.deploy.simulation.engines import simulate
from nufed.server.clients_table import clients_csv, read_clients_csv
from nufed.server.observer import ObserverSink
from nufed.server.run import ServerOptions

CONFIG = RunConfig().updated(
    {
        "data.num-clients": 4,
        "data.num-new-clients": 2,
        "federation.num-rounds": 2,
        "evaluation.num-adapt-steps": 3,
        "evaluation.primary-step": 2,
        "evaluation.interval": 1,
    }
)


OWN = """
import torch

def top_two(outputs, targets):
    return (outputs.topk(2, -1).indices == targets.unsqueeze(-1)).any(-1).double().mean()

def doubt(outputs, targets):
    return float("nan") if len(outputs) < 12 else 1 - outputs.softmax(1).amax(1).mean().item()

doubt.lower_is_better = True

def length(outputs, targets):
    return "sixteen"
"""


@pytest.fixture
def judges(tmp_path, monkeypatch):
    (tmp_path / "judges.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def run(out, engine, capsys, **options):
    with TerminalObserver(Console(width=180)) as observer, EventStream() as events:
        events.attach(ObserverSink(observer), patience=None)
        simulate(CONFIG.replace(**options), ServerOptions(out=out, events=events), engine=engine)
    (folder,) = out.iterdir()
    return folder, json.loads((folder / "summary.json").read_text()), capsys.readouterr().out


@pytest.mark.usefixtures("judges")
def test_own_metrics_are_everywhere_and_left_out_where_they_are_undefined(tmp_path, capsys):
    options = {"evaluation__metrics": "auto,judges:top_two", "evaluation__primary_metric": "judges:doubt"}
    results = {engine: run(tmp_path / engine, engine, capsys, **options) for engine in ("local", "cohort")}

    for folder, summary, shown in results.values():
        table = (folder / "clients.csv").read_text()
        clients = read_clients_csv(table)
        assert clients_csv(clients) == table
        assert {"top_two_0", "top_two_3", "validation_top_two_3", "doubt_3"} <= set(table.splitlines()[0].split(","))
        assert summary["primary_metric"] == "doubt"
        for group in ("participating", "new"):
            members = [client for client in clients if client.group == group]
            two = torch.tensor([client.metrics["test-top-two"] for client in members])
            assert summary[group]["metrics"]["test-top-two"] == pytest.approx(two.mean(0).tolist())
            one = torch.tensor([client.test_accuracy for client in members])
            assert bool((two >= one).all())
            doubts = torch.tensor([client.metrics["test-doubt"] for client in members])
            small = [client.num_test < 12 for client in members]
            assert summary[group]["num_undefined"] == [sum(small)] * 4
            assert doubts.isnan().all(1).tolist() == small
            assert summary[group]["better"] == "lower"
            assert summary[group]["worst_decile"][0] == pytest.approx(float(doubts[:, 0].nan_to_num(0).max()))
        assert f"{100 * summary['new']['metrics']['test-doubt'][0]:.1f} %" not in shown
        assert "test doubt" in shown
    local, cohort = (result[1]["new"]["metrics"]["test-top-two"] for result in results.values())
    assert local == pytest.approx(cohort, abs=0.05)


def test_by_default_the_columns_of_earlier_versions_stay_and_a_baseline_stands_beside(tmp_path, capsys):
    folder, summary, shown = run(tmp_path, "local", capsys, evaluation__metrics="accuracy")

    assert "metrics" not in summary["new"]
    header = (folder / "clients.csv").read_text().splitlines()[0].split(",")
    assert {name.rpartition("_")[0] for name in header[5:] if name[-1].isdigit()} == {
        "accuracy",
        "loss",
        "validation_accuracy",
        "validation_loss",
    }
    new = [client for client in read_clients_csv((folder / "clients.csv").read_text()) if client.group == "new"]
    mean = sum(client.baselines["accuracy"] for client in new) / len(new)
    assert summary["new"]["baselines"]["accuracy"] == pytest.approx(mean)
    assert f"{100 * mean:.1f} %" in shown
    for client in new:
        low, high = client.intervals["accuracy"]
        assert 0 <= low <= client.test_accuracy[2] <= high <= 1
    assert "2 new (± " in shown


def test_counts_of_right_and_wrong_leave_a_client_only_where_the_run_asks_for_them(tmp_path, capsys):
    quiet, *_ = run(tmp_path / "quiet", "local", capsys)
    open_one, *_ = run(tmp_path / "open", "cohort", capsys, evaluation__report_counts=True)

    assert "count_" not in (quiet / "clients.csv").read_text()
    for client in read_clients_csv((open_one / "clients.csv").read_text()):
        counts = torch.tensor(client.confusion).reshape(10, 10)
        assert int(counts.sum()) == client.num_test
        assert float(counts.diagonal().sum() / counts.sum()) == pytest.approx(client.test_accuracy[2])


@pytest.mark.usefixtures("judges")
def test_a_metric_that_cannot_be_is_refused_before_the_first_round(tmp_path, capsys):
    with pytest.raises(ConfigError, match="'rmse' is for regression, counts"):
        run(tmp_path / "a", "local", capsys, evaluation__metrics="rmse")
    with pytest.raises(NufedError, match="return a number, but it returned str"):
        run(tmp_path / "b", "local", capsys, evaluation__metrics="judges:length")

    assert not list((tmp_path / "b").glob("*/metrics.jsonl"))
