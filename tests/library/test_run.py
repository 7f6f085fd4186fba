"""What a run gives: curves and tables, its model, the way to go on; also of a folder that version 0.1 left."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nufed
from nufed.common.data import load_federation
from nufed.common.settings import Settings
from tests.library.federations import build, same_model, sites

FEW = {"num_inner_steps": 2, "num_local_steps": 2, "num_adapt_steps": 3, "primary_step": 2, "interval": 1}
NEW = ["site-5"]
OLD = Path(__file__).parent / "run_of_0_1"


def simulated(num_rounds, **options):
    return nufed.simulate(sites(), build, new_clients=NEW, num_rounds=num_rounds, progress=False, **FEW, **options)


@pytest.fixture(scope="module")
def run():
    return simulated(2)


@pytest.fixture
def old(tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


def test_curves_are_tidy_and_have_the_means_of_the_summary(run):
    curves, both = run.curves("new"), run.curves()

    assert list(curves.columns) == ["client", "step", "split", "metric", "value"]
    usual = curves["metric"].isin(["accuracy", "loss"])
    assert len(curves[usual]) == 1 * 4 * 2  # clients, steps, metrics; a new client has no validation split
    assert len(both[both["metric"].isin(["accuracy", "loss"])]) == 5 * 4 * 2 * 2 + 1 * 4 * 2
    assert {"balanced-accuracy", "auroc"} < set(curves["metric"])
    chosen = both.query("group == 'participating' and split == 'test' and metric == 'accuracy'")
    means = chosen.groupby("step")["value"].mean().tolist()
    assert means == pytest.approx(run.summary["participating"]["accuracy"])
    with pytest.raises(nufed.ConfigError, match="'participating' or 'new'"):
        run.curves("old")


def test_the_history_has_a_row_for_each_round(run):
    history = run.history

    assert history["round"].tolist() == [1, 2]
    assert history["accuracy_3"].iloc[-1] == pytest.approx(run.summary["participating"]["accuracy"][3])
    assert history["hvps"].sum() == run.summary["costs"]["hvps"]


def test_a_run_shows_itself(run):
    image = run.plot()._repr_png_()

    assert image.startswith(b"\x89PNG")
    assert "2 rounds, complete; participating accuracy" in repr(run)
    assert "<td>5</td>" in run._repr_html_()


def test_going_on_gives_the_model_of_an_unbroken_run(run):
    start = simulated(1)

    longer = start.resume(num_rounds=2)

    assert same_model(longer, run)
    assert (longer.path, len(longer.history), len(start.history)) == (start.path, 2, 1)
    with pytest.raises(nufed.ConfigError, match="num_rounds=1 is fewer than the 2 rounds"):
        longer.resume(num_rounds=1)
    with pytest.raises(nufed.RunError, match=r"all 2 are done\. Ask for more: num_rounds"):
        longer.resume(num_rounds=2)


def test_a_loaded_run_goes_on_with_its_own_data_and_model_alone(tmp_path, run):
    kept = simulated(1, out=tmp_path).path
    other = {**sites(), "site-0": sites()["site-1"]}
    given = {"dataset": sites(), "new_clients": NEW, "model": build}

    loaded = nufed.load_run(kept)
    with pytest.raises(nufed.ConfigError, match="dataset is missing: the run was given it in Python"):
        loaded.resume(num_rounds=2)
    with pytest.raises(nufed.ConfigError, match="Expected the dataset of the run"):
        loaded.resume(num_rounds=2, **{**given, "dataset": other})
    with pytest.raises(nufed.ConfigError, match="Expected the model of the run"):
        loaded.resume(num_rounds=2, **{**given, "model": torch.nn.Linear(3, 2)})
    with pytest.raises(nufed.DataError, match="given in Python"):
        _ = loaded.model

    assert same_model(loaded.resume(num_rounds=2, progress=False, **given), run)
    assert next(nufed.load_run(kept, **given).model.parameters()).shape == (4, 3)


def test_a_run_in_a_temporary_folder_lasts_as_long_as_it_is_held_and_can_be_kept(tmp_path):
    run = simulated(1)
    path = run.path

    kept = run.save(tmp_path / "kept")
    del run

    assert not path.exists()
    assert kept.summary == nufed.load_run(tmp_path / "kept").summary
    with pytest.raises(nufed.RunError, match="Name a folder that does not exist"):
        kept.save(tmp_path / "kept")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(nufed.RunError, match="does not exist"):
        nufed.load_run(tmp_path / "none")
    with pytest.raises(nufed.ConfigError, match="path expects the path of a folder, but got None"):
        nufed.load_run(None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.jsonl", "{", "a round's JSON object on each line of .*metrics.jsonl"),
        ("metrics.jsonl", "{}", "'round' is missing"),
        ("metrics.jsonl", "null", "a round's JSON object on each line"),
        ("summary.json", "{}", "a run's summary in .*'status' is missing"),
        ("summary.json", "[]", "a run's summary in"),
        ("summary.json", "half a", "a run's summary in"),
        ("clients.csv", "a,b\n1,2\n", "the columns client_id and group in .*, but found a, b"),
    ],
)
def test_a_file_of_a_run_that_is_none_is_named(old, name, content, said):
    (old / name).write_text(content, encoding="utf-8")

    with pytest.raises(nufed.RunError, match=said):
        _ = nufed.load_run(old).history


def test_a_private_run_says_what_was_spent_and_what_is_withheld_whole_or_killed(run, tmp_path):
    private = simulated(2, out=tmp_path, dp="client", clip=1.0, noise=0.5)

    assert (run.epsilon, run.withheld) == (None, ())
    assert private.epsilon == private.summary["privacy"]["epsilon"] == private.history["epsilon"].iloc[-1] > 0
    assert "evaluation" in private.withheld
    assert "evaluations are withheld" in repr(private)
    (private.path / "summary.json").unlink()
    killed = nufed.load_run(private.path)
    assert killed.summary["status"] == "unfinished"
    assert killed.epsilon == pytest.approx(private.epsilon)
    assert killed.withheld == private.withheld


def test_a_run_that_was_killed_can_be_looked_at_and_finished(tmp_path, run):
    """Its data were given in Python, so that no command could go on with it."""
    killed = simulated(1, out=tmp_path).path
    for name in ("summary.json", "clients.csv", "model.safetensors"):
        (killed / name).unlink()

    left = nufed.load_run(killed, dataset=sites(), new_clients=NEW, model=build)

    assert (left.summary["status"], left.summary["rounds"], len(left.curves())) == ("unfinished", 1, 0)
    assert "unfinished" in repr(left)
    assert left.model(torch.zeros(1, 3)).shape == (1, 2)
    assert same_model(left.resume(num_rounds=2, progress=False), run)


def test_a_run_of_version_0_1_is_read_and_goes_on(old):
    run = nufed.load_run(old)
    unbroken = nufed.simulate(
        *("sinusoid", "mlp"), config=run.config.updated({"federation.num-rounds": 4}), progress=False
    )

    longer = run.resume(num_rounds=4, progress=False)

    assert run.summary["new"]["num_clients"] == 2
    assert len(run.curves("new")) == 2 * 6
    assert run.model(torch.zeros(1, 1)).shape == (1, 1)
    for name, tensor in longer.params.items():  # the first two rounds were computed on another machine
        torch.testing.assert_close(tensor, unbroken.params[name], rtol=1e-4, atol=1e-5)


def test_runs_are_compared_by_what_differs(run, old):
    table = nufed.compare({"short": simulated(1), "long": run})
    folders = nufed.compare([old, run], step=0)

    assert table.columns.tolist() == [
        *("run", "num_rounds", "group", "num_clients", "metric", "step", "before", "after", "worst_decile", "spread")
    ]
    assert table["num_rounds"].tolist() == [1, 1, 2, 2]
    assert table["after"].tolist()[2] == run.summary["participating"]["accuracy"][2]
    assert {"dataset", "model", "num_inner_steps"} <= set(folders.columns)
    assert (folders["before"] == folders["after"]).all()
    with pytest.raises(nufed.ConfigError, match="from 0 to 3"):
        nufed.compare([run], step=4)
    with pytest.raises(nufed.ConfigError, match="got none"):
        nufed.compare([])
    with pytest.raises(nufed.ConfigError, match="runs expects a list, but got Run"):
        nufed.compare(run)
    with pytest.raises(nufed.ConfigError, match="'1' is there twice"):
        nufed.compare({1: run, "1": run})


def test_a_personal_model_is_the_one_that_the_run_judged():
    """The run's own new client, its support split fine-tuned on, has the loss of its curve at each step."""
    config = nufed.RunConfig(data=nufed.DataConfig(source="digits", num_clients=3, num_new_clients=1))
    federation = load_federation(config.data, seed=0, dtype=torch.float32, settings=Settings())
    run = nufed.simulate(federation, num_rounds=2, hidden_sizes=(8,), **FEW, progress=False)
    new = federation.clients[-1]
    judged = run.curves("new").pivot_table(index="step", columns="metric", values="value")

    for steps in (0, 2):
        personal = nufed.personalize(run.model, new.support.inputs, new.support.targets, steps=steps)
        result = nufed.evaluate(personal, new.test.inputs, new.test.targets)
        assert result.loss == pytest.approx(judged.loc[steps, "loss"], abs=1e-6)
        assert result.accuracy == pytest.approx(judged.loc[steps, "accuracy"])


def test_a_learned_step_size_is_used_for_personal_models():
    run = simulated(2, method="meta-sgd")
    inputs, targets = sites()["site-5"]

    personal = nufed.personalize(run.model, inputs, targets, steps=1)

    assert not torch.equal(personal[0].weight, run.model[0].weight)
    assert any(name.startswith("step-size/") for name in run.params)
    with pytest.raises(nufed.ConfigError, match="Meta-SGD"):
        nufed.personalize(run.model, inputs, targets, lr=0.1)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"lr": None}, nufed.ConfigError, "lr is missing: the model comes from no run"),
        ({"lr": 0.0}, nufed.ConfigError, "step size above 0"),
        ({"steps": -1}, nufed.ConfigError, "0 or more"),
        ({"steps": 2.5}, nufed.ConfigError, "steps expects a whole number of 0 or more, but got 2.5"),
        ({"batch_size": "all"}, nufed.ConfigError, "batch_size expects a whole number"),
        ({"lr": "0.1"}, nufed.ConfigError, "step size above 0, but got lr='0.1'"),
        ({"model": None}, nufed.ModelError, "to be a torch.nn.Module, but got None"),
        ({"model": SimpleNamespace(model=1)}, nufed.ModelError, "give the run's .model"),
        ({"inputs": np.zeros((4, 2))}, nufed.ModelError, r"takes inputs \[N, 2\]"),
        ({"targets": np.array([0, 1, 2, 0])}, nufed.DataError, "class numbers below 2 outputs, but got 2"),
        ({"targets": np.zeros(3, dtype=int)}, nufed.DataError, "as many targets as inputs"),
        ({"inputs": np.full((4, 3), np.nan)}, nufed.DataError, "NaN"),
        ({"lr": 1e3, "inputs": 1e18 * np.ones((4, 3)), "steps": 30}, nufed.ModelError, "lower lr"),
    ],
)
def test_what_cannot_be_personalized_is_said(change, kind, said):
    given = {
        "model": torch.nn.Linear(3, 2),
        "inputs": np.ones((4, 3)),
        "targets": np.array([0, 1, 0, 1]),
        "lr": 0.1,
        "steps": 2,
        **change,
    }

    with pytest.raises(kind, match=said):
        nufed.personalize(**given)
