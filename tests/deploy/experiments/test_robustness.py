"""Suites whose settings have attackers: what is run, what counts as done, and the tables of what each rule stands."""

import json
from dataclasses import replace

import pytest

from nufed.common.errors import ConfigError
from nufed.deploy.experiments.cells import Cell, outcome_of, run_cell
from nufed.deploy.experiments.comparison import compare
from nufed.deploy.experiments.conduct import Changes, with_changes
from nufed.deploy.experiments.finished import ClientTable, read_run
from nufed.deploy.experiments.hypotheses import Attacked, Graded
from nufed.deploy.experiments.report_markdown import markdown_report
from nufed.deploy.experiments.robustness import attack_table, robustness_tables, worst_table
from nufed.deploy.experiments.story import Story
from nufed.deploy.experiments.suite import checked
from tests.deploy.experiments.made_runs import made_run

OPTIONS = {
    "data.num-clients": 8,
    "data.num-new-clients": 2,
    "data.partition": "iid",
    "model.hidden-sizes": "8",
    "method.num-inner-steps": 0,
    "federation.participation-fraction": 1.0,
    "federation.num-rounds": 1,
    "evaluation.interval": 0,
    "evaluation.num-adapt-steps": 1,
    "evaluation.primary-step": 1,
}
MEDIAN = {"federation.aggregation": "median", "federation.num-attackers": 2}


def suite(**changes):
    methods = [{"name": "mean"}, {"name": "median", "options": MEDIAN}]
    settings = [{"name": "even", "attacks": {"scaled": [1, 2], "alie": [2]}}, {"name": "other"}]
    roles = {"name": "tried", "title": "Tried", "reference": "mean", "baseline": "mean"}
    return checked({**roles, "options": OPTIONS, "methods": methods, "settings": settings, **changes}, "tried")


def test_each_attack_makes_a_setting_of_its_own_before_the_one_without():
    made = suite()
    found = {each.name: (each.attack, each.attackers, each.honest) for each in made.settings}
    chosen = with_changes(made, Changes(settings=["even-alie-2"]))

    assert list(found) == ["even-scaled-1", "even-scaled-2", "even-alie-2", "even", "other"]
    assert found["even-scaled-2"] == ("scaled", 2, "even")
    assert found["even"] == ("", 0, "")
    assert [each.name for each in chosen.settings] == ["even-alie-2", "even"]  # an attack is judged by the run without


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        ({"scale": [1]}, "Did you mean 'scaled'"),
        ({"scaled": [8]}, "expected 1 to 7 of 8"),
        ({"scaled": [0]}, "greater than or equal to 1"),
    ],
)
def test_attacks_that_cannot_be_are_refused_before_anything_runs(attacks, said):
    with pytest.raises(ConfigError, match=said):
        suite(settings=[{"name": "even", "attacks": attacks}])


def test_an_attacked_cell_is_run_so_and_is_done_for_that_attack_alone(tmp_path):
    entry = next(entry for entry in suite().entries() if entry.key == "median@even-scaled-2")
    cell = Cell(entry.key, entry.config({}), entry.attack)

    outcome = run_cell(cell, tmp_path, "cohort")

    assert json.loads((tmp_path / "cells" / cell.name / "done.json").read_text())["attack"] == ["scaled", 2]
    assert outcome_of(cell, tmp_path) == outcome
    others = [replace(cell, attack=attack) for attack in (None, ("scaled", 1), ("alie", 2))]
    assert len({cell.name, *(each.name for each in others)}) == 4
    (tmp_path / "cells" / others[0].name).symlink_to(tmp_path / "cells" / cell.name)
    assert outcome_of(others[0], tmp_path) is None
    hostile = json.loads((outcome.folder / "environment.json").read_text())["hostile"]["clients"]
    judged = read_run(outcome.folder).groups["participating"].client_ids
    assert len(hostile) == 2
    assert len(judged) == 6
    assert not set(hostile) & set(judged)


def run_of(method, accuracies, seed=0, new=0.5):
    """Return a run whose clients have these accuracies after s* steps; None is a client that attacked."""
    run = made_run(method, seed, [new] * 7, clients=len(accuracies))
    table = run.groups["participating"]
    kept = [i for i, value in enumerate(accuracies) if value is not None]
    measures = {name: values[kept].copy() for name, values in table.measures.items()}
    for row, i in enumerate(kept):
        measures["accuracy"][row] = accuracies[i]
    attacked = ClientTable(tuple(table.client_ids[i] for i in kept), table.num_test[kept], measures)
    return replace(run, groups={"participating": attacked, "new": table})


def settings():
    """Return a setting and two attacks by its worst client; without it the plain mean has 0.9."""
    honest = [run_of("mean", [0.9, 0.9, 0.9, 0.1]), run_of("median", [0.8, 0.8, 0.8, 0.8])]
    one = [run_of("mean", [0.2, 0.2, 0.2, None]), run_of("median", [0.88, 0.88, 0.88, None])]
    two = [run_of("mean", [0.89, 0.89, 0.89, None])]  # the median diverged
    labels = {"mean": "plain", "median": "median"}
    return [
        Graded("even-scaled-1", 0, compare(one, labels, reference="mean"), attacked=Attacked("scaled", 1, "even")),
        Graded("even-alie-1", 0, compare(two, labels, reference="mean"), attacked=Attacked("alie", 1, "even")),
        Graded("even", 0, compare(honest, labels, reference="mean")),
    ]


def test_a_rule_is_held_against_the_plain_mean_without_attackers_on_the_same_clients():
    made = settings()
    table = attack_table(made[-1], made, "mean")

    assert table.header == ["attack, attackers", "no attack, plain", "plain", "median"]
    assert table.rows == [
        ["none", "", "70.0 / 50.0", "80.0 / 50.0"],
        ["scaled, 1", "90.0 / 50.0", "20.0 / 50.0", "88.0 / 50.0"],
        ["alie, 1", "90.0 / 50.0", "89.0 / 50.0", "diverged"],
    ]
    assert set(table.shades) == {(1, 3), (2, 2)}
    worst = worst_table(made, "mean")
    assert worst.rows == [["even", "-70.0 (scaled, 1)", "no result (alie, 1)"]]
    assert not worst.shades


def test_a_report_of_attacks_has_these_tables_in_place_of_the_comparison_of_methods():
    story = Story("Title", "", settings(), {}, {}, {})
    text = markdown_report(story)

    assert [title for title, _ in robustness_tables(story)][1:] == ["Setting `even`"]
    assert "| scaled, 1 | 90.0 / 50.0 | 20.0 / 50.0 | **88.0 / 50.0** |" in text
    assert "H1" not in text
    assert "Against" not in text
