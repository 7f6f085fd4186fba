"""A run says how it ended: what trained nothing or diverged is no complete run, and who is missing is named."""

import math

import pytest
from flwr.clientapp import ClientApp

import nufed
from nufed.client.app import app as client_app
from nufed.common.config import RunConfig
from nufed.common.errors import DivergedError, NothingTrainedError, RunError
from nufed.common.wire import ClientDescription, EvaluateReply
from nufed.deploy.commands.cli import main
from nufed.deploy.commands.terminal import closing_lines, summary_table
from nufed.deploy.experiments.cells import Cell, outcome_of, run_cell
from nufed.deploy.experiments.finished import read_run
from nufed.deploy.experiments.tuning import validation_score
from nufed.server.adaptation_curves import group_curves
from nufed.server.client_curves import ClientCurves
from nufed.server.history import History
from nufed.server.outcome import remedy
from nufed.server.progress_lines import describe_run
from tests.server.test_run import SMALL, StopAfter, client_rows, run, summary

RESULTS = ("clients.csv", "model.safetensors", "curves.png")


def app_that(train=None, evaluate=None):
    """The real ClientApp, but for what `train(message)` or `evaluate(message, context)` raises before it."""
    app = ClientApp()

    @app.query()
    def describe(message, context):
        return client_app(message, context)

    @app.train()
    def do_train(message, context):
        if train:
            train(message, context)
        return client_app(message, context)

    @app.evaluate()
    def do_evaluate(message, context):
        if evaluate:
            evaluate(message, context)
        return client_app(message, context)

    return app


def fail_in(*rounds):
    def train(message, _context):
        if int(message.content["config"]["server-round"]) in rounds:
            raise ValueError("no double backward")

    return train


def test_a_run_of_which_no_reply_could_be_used_has_trained_nothing_and_leaves_no_table(tmp_path):
    with pytest.raises(
        NothingTrainedError, match=r"none of 4 rounds.*no double backward.*Put right what the clients say"
    ):
        run(tmp_path, client=app_that(fail_in(1, 2, 3, 4)))

    (folder,) = tmp_path.iterdir()
    found = summary(folder)
    assert (found["status"], found["rounds_without_reply"]) == ("nothing-trained", 4)
    assert found["participating"] is found["new"] is None
    assert "no double backward" in found["reason"]
    assert not any((folder / name).exists() for name in RESULTS)
    assert summary_table(found) is None
    assert main(["simulate", "--resume", str(folder)]) == NothingTrainedError.exit_code
    with pytest.raises(RunError, match="trained nothing"):
        read_run(folder)
    with pytest.raises(RunError, match="nothing was trained"):
        _ = nufed.load_run(folder).model


def test_rounds_without_a_usable_reply_are_counted_also_over_an_interruption(tmp_path):
    client = app_that(fail_in(1, 3))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, client=client, listener=StopAfter(2))
    (folder,) = tmp_path.iterdir()

    run(tmp_path, client=client, resume=folder)

    found = summary(folder)
    assert (found["status"], found["rounds_without_reply"]) == ("complete", 2)
    assert "In 2 of 4 rounds no reply could be used" in "\n".join(closing_lines(found, folder))


def test_step_sizes_that_reject_every_reply_end_with_an_exit_code_of_their_own(tmp_path, capsys):
    options = ["--clients", "2", "--new-clients", "0", "--rounds", "2", "--local-lr", "1000"]

    code = main(["simulate", *options, "--out", str(tmp_path)])

    assert code == NothingTrainedError.exit_code == 8
    said = capsys.readouterr()
    assert "s = 0" not in said.out
    assert "Nothing was trained" in said.out
    assert "none of 2 rounds" in said.err
    assert "Lower --local-lr or --inner-lr" in said.err


def test_a_run_whose_clients_diverge_has_no_accuracy_and_says_so(tmp_path):
    """Of outputs that are NaN the largest is the first, so that class 0 would have been counted as right."""
    options = {"evaluation__adapt_lr": 1000.0, "evaluation__primary_step": 5}

    with pytest.raises(DivergedError, match="9 of 9 clients have diverged after 5 steps"):
        run(tmp_path, **options)

    (folder,) = tmp_path.iterdir()
    found = summary(folder)
    assert found["status"] == "diverged"
    assert found["new"]["accuracy"][5] is None
    assert found["new"]["num_diverged"][0] == 0
    assert found["new"]["num_diverged"][5] == 3
    assert {row["accuracy_5"] for row in client_rows(folder)} == {row["loss_5"] for row in client_rows(folder)} == {""}
    assert all(row["accuracy_0"] for row in client_rows(folder))
    assert main(["simulate", "--resume", str(folder)]) == DivergedError.exit_code == 9


def test_means_are_over_the_clients_that_have_not_diverged_and_the_worst_are_those_that_have():
    description = ClientDescription("c", "new", num_support=3, num_validation=0, num_test=10)
    diverged = ClientCurves.from_reply(
        description,
        EvaluateReply(10, {"test-loss": [1.0, math.nan], "test-accuracy": [0.5, 0.5]}),
        num_adapt_steps=1,
        measure="accuracy",
    )
    others = [
        ClientCurves(
            client_id=f"o{number}", group="new", num_support=3, num_test=10, test_loss=(1.0, 0.5), test_accuracy=curve
        )
        for number, curve in enumerate([(0.1, 0.8), (0.3, 0.6)])
    ]

    curves = group_curves([diverged, *others], "new", primary_step=1)

    assert curves.num_diverged == (0, 1)
    assert curves.accuracy == pytest.approx((0.3, 0.7))
    assert curves.loss == pytest.approx((1.0, 0.5))
    assert curves.gain == pytest.approx(0.5)  # of the two that are there at both
    assert math.isnan(curves.worst_decile[1])
    group = {**curves.to_json(), "validation_accuracy": [0.3, 0.9]}
    assert validation_score({"primary_step": 1, "participating": group}) == -math.inf
    assert validation_score({"primary_step": 0, "participating": group}) == 0.3


def test_a_diverged_clients_line_is_told_in_the_table_of_a_run():
    group = {"measure": "accuracy", "accuracy": [0.3, 0.7], "worst_decile": [0.1, None], "num_clients": 3}
    shown = {"status": "complete", "primary_step": 1, "num_inner_steps": 1, "new": {**group, "num_diverged": [0, 1]}}

    table = summary_table(shown)

    assert [list(column.cells)[-1] for column in table.columns][:4] == ["  of them diverged", "", "0", "1"]


def test_who_missed_the_final_evaluation_is_named_and_it_alone_can_be_repeated(tmp_path):
    calls, trained = [], []

    def evaluate(message, context):
        calls.append(context.node_config["partition-id"])
        if context.node_config["partition-id"] == 8 and not resumed:
            raise ValueError("data moved")
        if context.node_config["partition-id"] == 0 and resumed:
            raise ValueError("gone home")

    resumed = False
    client = app_that(lambda *_: trained.append(1), evaluate)
    folder = run(tmp_path, client=client)
    first, num_trained, whole = summary(folder), len(trained), run(tmp_path / "whole")
    resumed = True
    run(tmp_path, client=client, resume=folder)

    [(absent, reason)] = first["final_evaluation"]["absent"].items()
    assert first["new"]["num_clients"] == 2
    assert "data moved" in reason
    assert f"{absent} (" in "\n".join(closing_lines(first, folder))
    assert len(trained) == num_trained
    assert client_rows(folder) == client_rows(whole)
    for key in ("participating", "new"):
        assert summary(folder)[key] == summary(whole)[key]
    assert summary(folder)["final_evaluation"]["absent"] == {}
    assert main(["simulate", "--resume", str(folder)]) == RunError.exit_code


def test_a_repeated_final_evaluation_that_is_cut_short_leaves_the_old_one(tmp_path):
    def evaluate(_message, context):
        if context.node_config["partition-id"] == 8:
            raise ValueError("data moved")
        if resumed:
            raise KeyboardInterrupt

    resumed = False
    client = app_that(None, evaluate)
    folder = run(tmp_path, client=client)
    before = {name: (folder / name).read_bytes() for name in ("summary.json", *RESULTS)}
    resumed = True
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, client=client, resume=folder)

    assert {name: (folder / name).read_bytes() for name in before} == before
    (folder / "clients.csv").write_text((folder / "clients.csv").read_text().replace("0.", "1.", 1))
    resumed = False
    with pytest.raises(RunError, match="as the final evaluation left it"):
        run(tmp_path, client=client, resume=folder)


def test_a_run_that_nobody_judges_is_not_complete(tmp_path):
    def evaluate(message, _context):
        raise ValueError("no evaluation here")

    with pytest.raises(RunError, match="no evaluation here"):
        run(tmp_path, client=app_that(None, evaluate))

    (folder,) = tmp_path.iterdir()
    assert summary(folder)["status"] == "interrupted"
    run(tmp_path, resume=folder)
    assert summary(folder)["status"] == "complete"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("too large to draw")])
def test_a_picture_that_cannot_be_drawn_costs_nothing_else(tmp_path, monkeypatch, error, caplog):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("nufed.server.figures.draw_curves", fail)

    folder = run(tmp_path)

    assert summary(folder)["status"] == "complete"
    assert "picture of this run" in caplog.text


def test_the_last_evaluation_is_in_the_history_once(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "nufed.server.figures.draw_curves", lambda evaluations, *_, **__: drawn.append(evaluations) or b""
    )

    run(tmp_path)

    assert [done for done, _ in drawn[0]] == [0, 2, 4]
    assert History().after_evaluation(4, (0.1,)).after_evaluation(4, (0.2,)).evaluations == ((4, (0.2,)),)


def test_a_cell_that_diverged_or_trained_nothing_is_told_as_such_and_has_no_results(tmp_path):
    base = RunConfig().updated({**SMALL, "federation.num-rounds": 1})
    nothing = Cell("a", base.updated({"method.local-lr": 1000.0}))
    diverged = Cell("b", base.updated({"evaluation.adapt-lr": 1000.0, "evaluation.primary-step": 5}))

    outcomes = [run_cell(cell, tmp_path, "local") for cell in (nothing, diverged)]

    assert [(outcome.folder, outcome.ending) for outcome in outcomes] == [(None, "trained nothing"), (None, "diverged")]
    assert [outcome_of(cell, tmp_path) for cell in (nothing, diverged)] == outcomes


def test_advice_on_models_without_bounds_names_the_scale_of_clients_files_where_they_have_files():
    grown = {"a": "array '1.weight' contains NaN or infinite values"}

    assert remedy(grown, is_private=True).startswith(
        "Where columns of the clients' files hold large numbers, have them"
    )
    assert remedy(grown).startswith("Lower --local-lr")
    assert remedy({"a": "no such file"}, is_private=True).startswith("Put right what the clients say")


def test_one_client_is_no_plural():
    of_one = RunConfig.parse({"data.num-clients": 1, "data.num-new-clients": 0})

    assert describe_run(of_one).startswith("digits (classes), 1 client, mlp")
    assert "1 + 10 new clients" in describe_run(of_one.updated({"data.num-new-clients": 10}))
