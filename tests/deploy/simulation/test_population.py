"""Many simulated clients: a run costs what those that it asks cost, and a sample of them judges its models."""

import csv
import json

import pytest
from rich.console import Console

from nufed.common.config import RunConfig
from nufed.common.events import EventStream
from nufed.deploy.commands.terminal import TerminalObserver
from nufed.deploy.simulation.engines import simulate
from nufed.server.observer import ObserverSink
from nufed.server.run import ServerOptions

FEW_STEPS = {"evaluation.num-adapt-steps": 1, "evaluation.primary-step": 1, "method.local-lr": 0.001}


@pytest.mark.parametrize("engine", ["local", "cohort"])
def test_a_sample_of_each_group_judges_every_model_of_a_run_and_the_run_says_so(tmp_path, engine, capsys):
    sizes = {"data.source": "sinusoid", "data.num-clients": 12, "data.num-new-clients": 6}
    options = {"federation.num-rounds": 2, "evaluation.interval": 1, "evaluation.num-clients": 4}
    config = RunConfig().updated({**sizes, **options, **FEW_STEPS})

    with TerminalObserver(Console(width=180)) as observer, EventStream() as events:
        events.attach(ObserverSink(observer), patience=None)
        simulate(config, ServerOptions(out=tmp_path, events=events), engine=engine)
    (folder,) = tmp_path.iterdir()
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    judged = [set(event["clients"]) for event in told if event["event"] == "evaluation"]
    with (folder / "clients.csv").open() as file:
        rows = {row["client_id"]: row["group"] for row in csv.DictReader(file)}
    summary = json.loads((folder / "summary.json").read_text())

    assert [len(each) for each in judged] == [4, 4, 4, 8]
    assert judged[0] == judged[1] == judged[2] == {name for name, group in rows.items() if group == "participating"}
    assert set(rows) == judged[3]
    assert summary["evaluation_sample"] == {"participating": {"asked": 4, "of": 12}, "new": {"asked": 4, "of": 6}}
    assert summary["final_evaluation"]["absent"] == {}
    assert summary["final_evaluation"]["never_seen"] == 0
    assert "Judged by a sample: 4 of 12 participating and 4 of 6 new clients" in capsys.readouterr().out
