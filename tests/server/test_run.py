"""Whole runs in this process: same numbers, nothing lost, nobody's test data touched."""

import csv
import json
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp

from nufed.client.app import app as client_app
from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, RunError
from nufed.common.events import EventStream, RoundClosed
from nufed.common.wire import EvaluateRequest
from nufed.deploy.simulation.in_process import simulate_in_process
from nufed.server.app import build_server_app
from nufed.server.checkpoint import load_checkpoint
from nufed.server.control import RunControl
from nufed.server.run import ServerOptions
from nufed.server.run_folder import load_model

SMALL = {
    "data.num-clients": 6,
    "data.num-new-clients": 3,
    "federation.num-rounds": 4,
    "evaluation.interval": 2,
    "evaluation.num-adapt-steps": 5,
    "method.num-local-steps": 2,
}


def run(out, resume=None, listener=None, client=client_app, is_disposable=False, control=None, events=None, **changes):
    config = RunConfig().updated(
        {**SMALL, **{key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}}
    )
    before = set(out.iterdir()) if out.exists() else set()
    events = events or EventStream()
    if listener:
        events.listen(listener)
    control = control or RunControl()
    options = ServerOptions(out=out, resume=resume, events=events, control=control, is_disposable=is_disposable)
    simulate_in_process(
        build_server_app(options),
        client,
        num_nodes=config.data.num_clients + config.data.num_new_clients,
        run_config=config.flat(),
    )
    return resume or (set(out.iterdir()) - before).pop()


def model_bytes(folder: Path) -> bytes:
    params, _ = load_model(folder)
    return b"".join(tensor.numpy().tobytes() for tensor in params.values())


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def client_rows(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "clients.csv").read_text().splitlines()))


class StopAfter:
    """Interrupts the run after a round, as Ctrl-C does, or breaks it as a crash does."""

    def __init__(self, number, error=KeyboardInterrupt):
        self.number, self.error = number, error

    def __call__(self, event):
        if isinstance(event, RoundClosed) and event.round == self.number:
            raise self.error


def test_one_seed_gives_one_model_and_another_seed_another(tmp_path):
    first, second, other = run(tmp_path), run(tmp_path), run(tmp_path, seed=1)

    assert model_bytes(first) == model_bytes(second) != model_bytes(other)


def test_fedavg_is_meta_fedavg_without_inner_steps_or_step_size_bit_for_bit(tmp_path):
    folders = [
        run(tmp_path, method__num_inner_steps=0, method__estimator=estimator) for estimator in ("exact", "first-order")
    ]
    folders.append(run(tmp_path, method__num_inner_steps=2, method__inner_lr=0.0))

    assert len({model_bytes(folder) for folder in folders}) == 1


def test_a_run_leaves_all_its_files_and_its_summary_has_what_readers_need(tmp_path):
    folder = run(tmp_path)

    expected = {"config.json", "environment.json", "metrics.jsonl", "clients.csv", "model.safetensors", "summary.json"}
    assert {path.name for path in folder.iterdir()} >= expected | {"curves.png", "checkpoint.safetensors"}
    found = summary(folder)
    assert found["status"] == "complete"
    assert found["rounds"] == 4
    for group, size in (("participating", 6), ("new", 3)):
        assert found[group]["num_clients"] == size
        assert len(found[group]["accuracy"]) == len(found[group]["worst_decile"]) == len(found[group]["loss"]) == 6
    rounds = lines(folder)
    assert [line["round"] for line in rounds] == [1, 2, 3, 4]
    assert [line["evaluation"] is not None for line in rounds] == [False, True, False, True]
    assert found["costs"]["gradient_evaluations"] == 4 * 3 * 2 * 4  # rounds, clients, local steps, ν + 1
    assert found["costs"]["hvps"] == 4 * 3 * 2 * 3
    assert found["costs"]["bytes_up"] == found["costs"]["bytes_down"] > 0
    assert RunConfig.load(folder / "config.json") == RunConfig().updated(SMALL)


def test_the_csv_agrees_with_the_summary(tmp_path):
    folder = run(tmp_path)

    rows = client_rows(folder)

    assert len(rows) == 9
    new = [float(row["accuracy_5"]) for row in rows if row["group"] == "new"]
    assert sum(new) / len(new) == pytest.approx(summary(folder)["new"]["accuracy"][5])


def test_new_clients_are_never_trained_on(tmp_path):
    folder = run(tmp_path, federation__participation_fraction=1.0)

    trained = {client for line in lines(folder) for client in line["clients"]}

    rows = client_rows(folder)
    assert trained == {row["client_id"] for row in rows if row["group"] == "participating"}


def test_evaluation_leaves_training_unchanged(tmp_path):
    often, never = run(tmp_path, evaluation__interval=1), run(tmp_path, evaluation__interval=0)

    assert model_bytes(often) == model_bytes(never)


def test_a_run_stopped_by_hand_is_written_down_and_goes_on_to_the_same_model(tmp_path):
    whole = run(tmp_path / "whole")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", listener=StopAfter(3))
    (folder,) = (tmp_path / "cut").iterdir()
    stopped = summary(folder)
    run(tmp_path / "cut", resume=folder)

    assert (stopped["status"], stopped["rounds"]) == ("interrupted", 3)
    assert model_bytes(folder) == model_bytes(whole)
    assert [line["round"] for line in lines(folder)] == [1, 2, 3, 4]
    for key in ("participating", "new", "costs", "status"):
        assert summary(folder)[key] == summary(whole)[key]


def test_a_disposable_run_ends_like_any_other_and_starts_anew_when_cut_short(tmp_path):
    whole, disposable = run(tmp_path / "whole"), run(tmp_path / "disposable", is_disposable=True)

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "cut", listener=StopAfter(2, ZeroDivisionError), is_disposable=True)
    (cut,) = (tmp_path / "cut").iterdir()

    assert model_bytes(disposable) == model_bytes(whole)
    assert load_checkpoint(disposable).round == load_checkpoint(whole).round == 4
    assert not (disposable / "curves.png").exists()
    assert load_checkpoint(cut) is None


def test_a_run_that_crashed_goes_on_to_the_same_model(tmp_path):
    whole = run(tmp_path / "whole")

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "cut", listener=StopAfter(2, ZeroDivisionError))
    (folder,) = (tmp_path / "cut").iterdir()
    run(tmp_path / "cut", resume=folder)

    assert model_bytes(folder) == model_bytes(whole)


def test_a_checkpoint_of_another_model_is_not_resumed(tmp_path):
    folder = run(tmp_path)

    with pytest.raises(RunError, match="arrays differ"):
        run(tmp_path, resume=folder, model__hidden_sizes="7")


def test_an_unknown_estimator_ends_the_run_before_it_leaves_anything(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        run(tmp_path, method__estimator="exact-ish")

    assert list(tmp_path.iterdir()) == []


def test_rounds_to_target_is_reported_for_the_accuracy_asked(tmp_path):
    easy, hard = (
        run(tmp_path, evaluation__target_accuracy=target, evaluation__primary_step=5) for target in (0.01, 1.0)
    )

    assert summary(easy)["rounds_to_target"] == 0
    assert summary(hard)["rounds_to_target"] is None


@pytest.mark.parametrize("source", ["sinusoid", "quadratic"])
def test_regression_reports_losses_and_no_accuracy(tmp_path, source):
    folder = run(tmp_path, data__source=source, data__partition="by-user", model__name="linear")

    assert summary(folder)["new"]["accuracy"] is None
    assert len(summary(folder)["new"]["loss"]) == 6


@pytest.mark.parametrize("estimator", ["unrolled", "first-order", "hessian-free"])
def test_every_estimator_lowers_the_loss_after_adaptation(tmp_path, estimator):
    folder = run(tmp_path, method__estimator=estimator, federation__num_rounds=6)

    curve = summary(folder)["participating"]["loss"]
    assert curve[3] < curve[0]


def test_zero_rounds_judge_the_initial_model(tmp_path):
    folder = run(tmp_path, federation__num_rounds=0)

    assert summary(folder)["rounds"] == 0
    assert lines(folder) == []
    assert summary(folder)["new"]["num_clients"] == 3


def test_only_the_last_evaluation_is_called_final(tmp_path):
    """Every client, known or new, is told once that this is the model to keep."""
    announced = []
    app = ClientApp()

    @app.query()
    def describe(message, context):
        return client_app(message, context)

    @app.train()
    def train(message, context):
        return client_app(message, context)

    @app.evaluate()
    def evaluate(message, context):
        request = EvaluateRequest.from_records(message.content)
        announced.append((request.round, request.final))
        return client_app(message, context)

    run(tmp_path, client=app)

    assert [pair for pair in announced if pair[1]] == [(4, True)] * 9
    assert [round_done for round_done, final in announced if not final] == [0] * 6 + [2] * 6 + [4] * 6
