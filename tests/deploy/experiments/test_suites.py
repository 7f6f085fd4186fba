"""What suites may say, what they make of it, and how step sizes are chosen."""

import hashlib
import json
import math

import numpy as np
import pytest

from nufed.client.workplace import _workplace
from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, DataError, RunError
from nufed.deploy.experiments.archive import inverted_archive, standardized_archive
from nufed.deploy.experiments.cells import Cell, Outcome, outcome_of, run_cell, step_cost
from nufed.deploy.experiments.conduct import Changes, located, with_changes
from nufed.deploy.experiments.runner import Workers
from nufed.deploy.experiments.suite import Suite, checked, num_points, suite_names
from nufed.deploy.experiments.tuning import at_edge, tune, validation_score


def values(**changes):
    methods = [
        {"name": "fedavg", "options": {"method.num-inner-steps": 0}},
        {"name": "per-fedavg", "options": {"method.num-inner-steps": 1}},
        {"name": "meta-5", "options": {"method.num-inner-steps": 5}},
        {
            "name": "one-step-5",
            "follows": "meta-5",
            "scaled": {"method.inner-lr": 5},
            "options": {"method.num-inner-steps": 1},
        },
    ]
    grid = {"method.inner-lr": [0.01, 0.1], "method.local-lr": [0.1, 0.3, 0.9]}
    return {"name": "own", "title": "Own", "methods": methods, "grid": grid, "tuning-seeds": 2, **changes}


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_that_comes_with_nufed_can_be_read_and_tunes_all_methods_alike(name):
    suite = Suite.load(name)

    sizes = {num_points(suite.grid_of(method)) for method in suite.methods if not method.follows}

    assert suite.name == name
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds"),
        ({"colour": "red"}, "colour"),
        ({"reference": "fedavgs"}, "Did you mean 'fedavg'"),
        ({"options": {"method.inner-lrs": 1}}, "Did you mean 'method.inner-lr'"),
        ({"grid": {"method.local-lr": [-1.0]}}, "method.local-lr"),
        ({"settings": [{"name": "a"}, {"name": "a"}]}, "two settings have one name"),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused_before_anything_runs(changes, message):
    with pytest.raises(ConfigError, match=message):
        checked(values(**changes), "own")


def test_a_method_with_a_larger_budget_than_the_others_is_refused():
    bad = values()
    bad["methods"][1]["grid"] = {"method.local-lr": [0.1, 0.2, 0.3]}

    with pytest.raises(ConfigError, match="per-fedavg is tuned on 3 points and the suite on 6"):
        checked(bad, "own")


def test_an_unknown_suite_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        Suite.load("digit")


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("name = ")

    with pytest.raises(ConfigError, match="Expected TOML"):
        Suite.load(str(path))


def test_options_of_the_command_line_win_over_all_others():
    suite = with_changes(checked(values(), "own"), Changes(options={"method.num-inner-steps": 3}))

    assert {entry.config({}).method.num_inner_steps for entry in suite.entries()} == {3}


def test_methods_can_be_left_out_but_not_one_that_others_need():
    suite = checked(values(), "own")

    kept = with_changes(suite, Changes(methods=["fedavg", "per-fedavg"]))

    assert [entry.key for entry in kept.entries()] == ["fedavg", "per-fedavg"]
    with pytest.raises(ConfigError, match="takes its step sizes from 'meta-5'"):
        with_changes(suite, Changes(methods=["fedavg", "per-fedavg", "one-step-5"]))
    with pytest.raises(ConfigError, match="Did you mean 'fedavg'"):
        with_changes(suite, Changes(methods=["fedavgs"]))


def test_a_follower_takes_the_scaled_step_in_training_and_the_followed_one_at_test_time():
    suite = checked(values(), "own")
    followed, follower = suite.entries()[2:]
    chosen = followed.config({"method.inner-lr": 0.1})

    config = follower.config({"method.local-lr": 0.3}, chosen)

    assert config.method.inner_lr == pytest.approx(0.5)
    assert config.evaluation.adapt_lr == pytest.approx(0.1)
    assert config.method.num_inner_steps == 1
    assert suite.grid_of(follower.method) == {"method.local-lr": [0.1, 0.3, 0.9]}


def test_cells_with_equal_options_share_a_folder_and_others_do_not():
    config = RunConfig()

    assert Cell("a", config).name == Cell("a", config.updated({"name": "other"})).name
    assert Cell("a", config).name != Cell("a", config.updated({"seed": 1})).name
    assert Cell("a", config).name != Cell("a", config.updated({"method.inner-lr": 0.3})).name


def test_finished_cells_of_clients_that_train_alone_keep_the_name_that_the_first_release_gave_them():
    digest = hashlib.sha256(b'{"federation.aggregation": "none"}').hexdigest()[:12]

    assert Cell("a", RunConfig().updated({"federation.training": "local"})).name == f"a-0-{digest}"


def test_a_cell_is_done_only_if_it_was_run_with_the_same_options(tmp_path):
    cell = Cell("a", RunConfig())
    place = tmp_path / "cells" / cell.name
    place.mkdir(parents=True)
    record = {"folder": "run", "problem": "", "seconds": 2.0, "options": cell.config.flat()}

    assert outcome_of(cell, tmp_path) is None
    (place / "done.json").write_text(json.dumps(record))
    assert outcome_of(cell, tmp_path) == Outcome(place / "run", "", 2.0)
    (place / "done.json").write_text(json.dumps({**record, "options": {**record["options"], "seed": 5}}))
    assert outcome_of(cell, tmp_path) is None
    (place / "done.json").write_text("{")
    with pytest.raises(RunError, match="Delete it and go on"):
        outcome_of(cell, tmp_path)


@pytest.mark.parametrize(
    ("estimator", "nu", "cost"),
    [("exact", 0, 1.0), ("exact", 2, 7.8), ("first-order", 2, 3.0), ("hessian-free", 2, 7.0)],
)
def test_a_meta_step_costs_what_the_theory_counts(estimator, nu, cost):
    config = RunConfig().replace(method__estimator=estimator, method__num_inner_steps=nu)

    assert step_cost(config) == pytest.approx(cost)


def test_a_run_leaves_no_clients_behind_in_its_process(tmp_path):
    config = RunConfig().replace(federation__num_rounds=1, evaluation__interval=0)

    outcome = run_cell(Cell("fedavg", config), tmp_path, "cohort")

    assert outcome.folder is not None
    assert _workplace.cache_info().currsize == 0


def test_a_moreau_step_costs_its_gradients_alone():
    config = RunConfig().replace(method__objective="moreau", method__num_inner_steps=5, method__personal_strength=1.0)

    assert step_cost(config) == 6.0


def test_a_score_is_the_validation_accuracy_at_the_primary_step():
    group = {"validation_accuracy": [0.1, 0.2, 0.3], "validation_loss": [3.0, 2.0, 1.0]}

    assert validation_score({"participating": group, "primary_step": 1}) == 0.2
    assert validation_score({"participating": {**group, "validation_accuracy": None}, "primary_step": 2}) == -1.0
    assert validation_score({"participating": {"validation_loss": [None]}, "primary_step": 0}) == -math.inf
    with pytest.raises(RunError, match="validation examples"):
        validation_score({"participating": {}, "primary_step": 0})


def test_a_choice_at_an_end_of_the_grid_is_flagged():
    grid = {"a": [1, 2, 3], "b": [1, 2, 3], "c": [5]}

    assert at_edge({"a": 3, "b": 2, "c": 5}, grid) == ("a",)


def stand_in(monkeypatch, tmp_path, score):
    """Make runs instant: `score(config)` is the validation accuracy, None a run that diverges."""
    ran = []

    def run(cells, _workers):
        outcomes = {}
        for cell in cells:
            ran.append(cell)
            folder, value = tmp_path / cell.name, score(cell.config)
            folder.mkdir(exist_ok=True)
            summary = {"primary_step": 0, "participating": {"validation_accuracy": [value]}}
            (folder / "summary.json").write_text(json.dumps(summary))
            outcomes[cell.name] = Outcome(None if value is None else folder, "", 0.0)
        return outcomes

    monkeypatch.setattr("nufed.deploy.experiments.tuning.run_cells", run)
    return ran


def test_the_best_point_on_validation_is_chosen_after_equal_numbers_of_runs(monkeypatch, tmp_path):
    ran = stand_in(
        monkeypatch, tmp_path, lambda config: 1 - abs(config.method.local_lr - 0.3) - abs(config.method.inner_lr - 0.1)
    )

    choices = tune(checked(values(), "own"), Workers(tmp_path, 1, "local", print))

    leaders = {"fedavg", "per-fedavg", "meta-5"}
    counts = {name: sum(cell.entry == name for cell in ran) for name in leaders}
    assert set(counts.values()) == {6 * 2}
    assert all(choices[name].point == {"method.inner-lr": 0.1, "method.local-lr": 0.3} for name in leaders)
    assert choices["meta-5"].at_edge == ("method.inner-lr",)
    assert choices["one-step-5"].config.method.inner_lr == pytest.approx(0.5)
    assert all(cell.config.seed >= 1000 for cell in ran)
    assert all(cell.config.evaluation.interval == 0 for cell in ran)


def test_a_point_that_diverges_is_never_chosen_and_a_method_without_others_ends_the_suite(monkeypatch, tmp_path):
    suite = checked(values(), "own")
    workers = Workers(tmp_path, 1, "local", print)
    stand_in(monkeypatch, tmp_path, lambda config: None if config.method.local_lr > 0.1 else 0.1)

    assert tune(suite, workers)["fedavg"].config.method.local_lr == 0.1

    stand_in(monkeypatch, tmp_path, lambda config: None if config.method.num_inner_steps == 5 else 0.1)
    with pytest.raises(RunError, match="meta-5 to train, but all 6 diverged"):
        tune(suite, workers)


def test_an_archive_is_standardized_for_each_user_by_its_own_training_part(tmp_path):
    x_train = np.array([[1.0, np.nan], [3.0, np.nan], [10.0, 5.0], [30.0, 7.0]], dtype=np.float32)
    x_test = np.array([[5.0, 1.0], [np.nan, 6.0]], dtype=np.float32)
    arrays = {"x_train": x_train, "y_train": np.zeros(4, int), "user_train": np.array([0, 0, 1, 1])}
    arrays |= {"x_test": x_test, "y_test": np.zeros(2, int), "user_test": np.array([0, 1])}
    np.savez(tmp_path / "raw.npz", **arrays)

    standardized_archive(tmp_path / "raw.npz", tmp_path / "new" / "data.npz")

    with np.load(tmp_path / "new" / "data.npz") as archive:
        np.testing.assert_allclose(archive["x_train"], [[-1, 0], [1, 0], [-1, -1], [1, 1]])
        np.testing.assert_allclose(archive["x_test"], [[3, 1], [0, 0]])


def test_an_archive_of_ink_on_paper_is_inverted(tmp_path):
    np.savez(tmp_path / "raw.npz", x=np.full((2, 3, 3), 250, np.uint8), y=np.array([0, 1]))

    inverted_archive(tmp_path / "raw.npz", tmp_path / "data.npz")

    with np.load(tmp_path / "data.npz") as archive:
        assert archive["x"].max() == 5
        assert archive["y"].tolist() == [0, 1]
    with pytest.raises(DataError, match="8-bit pixels"):
        inverted_archive(_floats(tmp_path), tmp_path / "none.npz")
    with pytest.raises(DataError, match="lacks user_test"):
        standardized_archive(tmp_path / "floats.npz", tmp_path / "none.npz")


def _floats(folder):
    parts = {f"{kind}_{part}": np.zeros(2) for kind in ("x", "y", "user") for part in ("train", "test")}
    del parts["user_test"]
    np.savez(folder / "floats.npz", **parts)
    return folder / "floats.npz"


def test_an_archive_is_looked_for_in_the_data_folder_and_above(tmp_path):
    suite = checked(values(archive={"file": "own.npz"}), "own")
    (tmp_path / "torchvision").mkdir()
    np.savez(tmp_path / "own.npz", x=np.zeros((2, 1)), y=np.zeros(2, int))

    found = located(suite, tmp_path / "out", tmp_path / "torchvision")

    assert found.options["data.source"].startswith("npz:")
    assert found.options["data.source"].endswith("own.npz")
    with pytest.raises(DataError, match="--data-root"):
        located(suite, tmp_path / "out", None)
