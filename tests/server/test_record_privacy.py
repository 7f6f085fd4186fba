"""What a run says of the privacy of its clients' records, and that both engines protect them alike."""

import json
from statistics import median

import pytest
import torch

from nufed.common.config import RunConfig
from nufed.common.durable_file import read_tensors
from nufed.common.privacy.record import record_plan
from nufed.deploy.commands.result_tables import record_line
from nufed.deploy.simulation.engines import simulate_checked
from nufed.server.history import History
from nufed.server.record_privacy import record_summary
from nufed.server.run import ServerOptions

RUN = RunConfig().updated(
    {
        "privacy.dp": "record",
        "privacy.clip": 0.5,
        "privacy.noise": 1.5,
        "privacy.publish": "examples",
        "model.name": "linear",
        "method.num-inner-steps": 1,
        "method.num-local-steps": 1,
        "data.num-clients": 3,
        "data.num-new-clients": 0,
        "federation.num-rounds": 3,
        "federation.participation-fraction": 0.67,
        "evaluation.interval": 0,
    }
)


def run_with(engine, folder):
    """Return a run's summary and its final model as one vector."""
    simulate_checked(RUN, ServerOptions(out=folder, is_disposable=True), engine=engine)
    [path] = folder.glob("*")
    params, _ = read_tensors(path / "model.safetensors")
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    asked = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return summary, torch.cat([tensor.flatten() for tensor in params.values()]), asked


@pytest.fixture
def key(monkeypatch):
    """Noise and coins that repeat."""
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "engines")


@pytest.mark.usefixtures("key")
def test_engines_agree_and_the_summary_counts_the_rounds_that_each_client_was_asked_in(tmp_path):
    summary, model, records = run_with("local", tmp_path / "local")
    together = run_with("cohort", tmp_path / "cohort")

    assert torch.equal(model, together[1])
    told = summary["record_privacy"]
    assert told == together[0]["record_privacy"]
    rounds = {name: sum(name in record["clients"] for record in records) for name in told["epsilons"]}
    assert sum(rounds.values()) == 6
    sizes = {name: values["num-examples"] for record in records for name, values in record["clients"].items()}
    expected = {name: record_plan(RUN, sizes[name]).epsilon(count) for name, count in rounds.items()}
    assert told["epsilons"] == pytest.approx(expected)
    assert told["worst_epsilon"] == max(expected.values())
    assert told["median_epsilon"] == median(expected.values())
    assert told["num_untold"] == 0
    assert "at the worst client" in record_line(summary)[0]


def test_counts_survive_a_checkpoint_and_a_client_that_keeps_its_cost_to_itself_is_counted_as_such():
    history = History(rounds_asked={"a": 2, "b": 1}, epsilons={"a": 0.75})

    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history
    assert "rounds_asked" not in History().to_json()
    told = record_summary(RUN, history, {})["record_privacy"]
    assert (told["worst_epsilon"], told["num_untold"], told["epsilons"]) == (0.75, 1, {"a": 0.75})
    closed = RUN.updated({"privacy.publish": "", "privacy.epsilon": 2.0})
    untold = record_summary(closed, History(rounds_asked={"a": 1}), {})
    assert untold["record_privacy"]["worst_epsilon"] == 2.0
    assert "at most 2" in record_line(untold)[0]
    assert record_summary(RUN.updated({"privacy.dp": "none"}), history, {}) == {}
