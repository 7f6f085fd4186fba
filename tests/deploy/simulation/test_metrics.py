"""A metric that is registered in one place is computed by every engine and stands in everything that a run leaves."""

import json

import pytest
import torch
from rich.console import Console

from nufed.common.config import RunConfig
from nufed.common.events import EventStream
from nufed.common.metrics import ACCURACY, METRICS, Metric
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


@pytest.fixture
def top_two(monkeypatch):
    def of_each(outputs, targets):
        return (outputs.topk(2, -1).indices == targets.unsqueeze(-1)).any(-1)

    metric = Metric("share of examples whose class is among the two likeliest", of_each, 0.0, 1.0, is_share=True)
    monkeypatch.setitem(METRICS["classification"], "top-2", metric)


def run(out, engine, capsys):
    with TerminalObserver(Console(width=160)) as observer, EventStream() as events:
        events.attach(ObserverSink(observer), patience=None)
        simulate(CONFIG, ServerOptions(out=out, events=events), engine=engine)
    (folder,) = out.iterdir()
    return folder, json.loads((folder / "summary.json").read_text()), capsys.readouterr().out


@pytest.mark.usefixtures("top_two")
def test_a_metric_that_is_registered_in_one_place_is_everywhere(tmp_path, capsys):
    results = {engine: run(tmp_path / engine, engine, capsys) for engine in ("local", "cohort")}

    for folder, summary, shown in results.values():
        table = (folder / "clients.csv").read_text()
        clients = read_clients_csv(table)
        assert clients_csv(clients) == table
        assert {"top_2_0", "top_2_3", "validation_top_2_3"} <= set(table.splitlines()[0].split(","))
        for group in ("participating", "new"):
            members = [client.metrics["test-top-2"] for client in clients if client.group == group]
            assert summary[group]["metrics"]["test-top-2"] == pytest.approx(torch.tensor(members).mean(0).tolist())
            assert all(two >= one for two, one in zip(members[0], summary[group]["worst_decile"], strict=True))
        assert f"{100 * summary['new']['metrics']['test-top-2'][0]:.1f} %" in shown.partition("  top-2")[2]
    local, cohort = (result[1]["new"]["metrics"]["test-top-2"] for result in results.values())
    assert local == pytest.approx(cohort, abs=0.05)


def test_without_further_metrics_a_summary_is_as_it_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(METRICS, "classification", {"accuracy": ACCURACY})

    folder, summary, _ = run(tmp_path, "local", capsys)

    assert "metrics" not in summary["new"]
    header = (folder / "clients.csv").read_text().splitlines()[0].split(",")
    assert {name.rpartition("_")[0] for name in header[5:]} == {
        "accuracy",
        "loss",
        "validation_accuracy",
        "validation_loss",
    }
