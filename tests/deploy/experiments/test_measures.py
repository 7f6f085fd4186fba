"""Who is worse off, who is served worst, and what few examples and megabytes come to, against counts by eye."""

from dataclasses import replace

import numpy as np
import pytest

from nufed.deploy.experiments.comparison import compare
from nufed.deploy.experiments.measures import against_whom, shots_table, worse_off, worse_off_table, worst_table
from nufed.deploy.experiments.report_tables import target_table
from tests.deploy.experiments.made_runs import NUM_STEPS, OPTIONS, made_run

ALONE = {"federation.training": "local", **OPTIONS["fedavg"]}


def run_of(method, values, *, seed=0, loss=False, config=None, **more):
    """Return a run whose clients have these numbers after every step."""
    run = made_run(method, seed, np.zeros(NUM_STEPS + 1), clients=len(values), loss=loss, config=config, **more)
    curves = np.repeat(np.array(values, dtype=float)[:, None], NUM_STEPS + 1, axis=1)
    for table in run.groups.values():
        table.measures["loss" if loss else "accuracy"][:] = curves
    return run


def three(*, loss=False, turn=1.0):
    values = {"alone": [0.5, 0.5, 0.5, 0.5], "fedavg": [0.5, 0.4, 0.7, 0.9], "meta-2": [0.4, 0.5, 0.8, 0.8]}
    options = {"alone": ALONE, "fedavg": OPTIONS["fedavg"], "meta-2": OPTIONS["meta-2"]}
    runs = [
        run_of(name, [turn * value for value in own], seed=seed, loss=loss, config=options[name])
        for name, own in values.items()
        for seed in range(3)
    ]
    return compare(runs, {})


@pytest.mark.parametrize(("loss", "turn"), [(False, 1.0), (True, -1.0)])
def test_clients_are_worse_off_one_by_one_and_ties_are_not(loss, turn):
    comparison = three(loss=loss, turn=turn)

    assert against_whom(comparison) == {"alone": "alone", "with FedAvg": "fedavg"}
    assert worse_off(comparison, "meta-2", "alone", "new") == {0: 0.25, 1: 0.25, 2: 0.25}
    assert worse_off(comparison, "meta-2", "fedavg", "new") == {0: 0.5, 1: 0.5, 2: 0.5}
    table = worse_off_table(comparison, "new")
    assert table.header[1:] == ["worse off than alone (alone)", "worse off than with FedAvg (fedavg)"]
    assert [row[0] for row in table.rows if not row[1]] == ["alone"]  # not against itself


def test_clients_are_paired_by_name_and_those_that_diverged_are_worse_off():
    ours, theirs = (
        run_of(name, values, config=OPTIONS[option])
        for name, option, values in (("a", "meta-2", [0.9, np.nan, 0.1]), ("b", "fedavg", [0.1, 0.9, np.nan]))
    )
    reordered = replace(
        theirs,
        groups={
            group: replace(
                table,
                client_ids=table.client_ids[::-1],
                measures={name: values[::-1] for name, values in table.measures.items()},
            )
            for group, table in theirs.groups.items()
        },
    )

    for other in (theirs, reordered):
        assert worse_off(compare([ours, other], {}), "a", "b", "new") == {0: pytest.approx(1 / 3)}


def test_without_fedavg_and_local_runs_nobody_is_said_to_be_worse_off():
    runs = [run_of(name, [0.5], config=OPTIONS[name]) for name in ("per-fedavg", "meta-2")]

    assert worse_off_table(compare(runs, {}), "new") is None


def test_the_worst_client_is_named_where_it_is_always_the_same():
    rows = {row[0]: row[1:3] for row in worst_table(three(), "new").rows}

    assert rows["fedavg"][0].startswith("40.0")
    assert rows["fedavg"][1] == "client-1"
    assert rows["meta-2"][1] == "client-0"


def test_shots_are_means_over_seeds_and_megabytes_are_those_of_the_round_that_reached_the_target():
    curve = [0.1, 0.2, 0.3, 0.4, 0.5, None, 0.7]
    runs = []
    for seed in range(3):
        run = run_of("meta-2", [0.5], seed=seed, progress=[0.1, 0.9, 0.9], config=OPTIONS["meta-2"])
        shots = {"new": {"5": {"accuracy": curve}, "1": {"accuracy": curve}}, "participating": None}
        runs.append(replace(run, summary={**run.summary, "shots": shots}))
    comparison = compare(runs, {}, target=0.5)

    table = shots_table(comparison, "new")

    assert table.header == ["method", "examples, k", "s = 0", "s = 1", "s = 2", "s = 6"]
    assert [row[1] for row in table.rows] == ["1", "5"]
    assert [cell.partition(" ")[0] for cell in table.rows[0][2:]] == ["10.0", "20.0", "30.0", "70.0"]
    assert shots_table(comparison, "participating") is None
    assert target_table(comparison).rows == [["meta-2", "10", "50", "0.001"]]
