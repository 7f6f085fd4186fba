"""Published numbers beside ours: how examples are pooled, and what a table says."""

import dataclasses

import numpy as np
import pytest

from benchmarks.field import BOARDS, Board, Row, board_table, pooled
from nufed.common.methods import METHODS
from nufed.deploy.experiments.comparison import compare
from nufed.deploy.experiments.suite import Suite
from tests.deploy.experiments.made_runs import LABELS, made_run


def test_clients_weigh_by_their_test_examples():
    """9 of 10 right and 10 of 90 right are 19 of 100, where the mean over clients is 50.6 %."""
    table = made_run("fedavg", 0, [0.5, 0.5], clients=2).groups["participating"]
    table = dataclasses.replace(
        table,
        num_test=np.array([10, 90]),
        measures={"accuracy": np.array([[0.9], [10 / 90]]), "loss": np.zeros((2, 1))},
    )

    assert pooled(table, 0) == pytest.approx(0.19)


def test_each_method_is_judged_after_the_steps_that_the_publication_takes():
    """FedAvg before fine-tuning, Per-FedAvg after one step; what ours lacks stands there all the same."""
    curves = {"fedavg": [0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9], "per-fedavg": [0.1, 0.8, 0.85, 0.9, 0.9, 0.9, 0.9]}
    runs = [made_run(name, seed, curve) for name, curve in curves.items() for seed in range(3)]
    comparison = compare(runs, LABELS)
    rows = (
        Row("97.9", "", label="the best"),
        Row("85.8", "fedavg", label="FedAvg"),
        Row("95.1", "per-fedavg", 1),
        Row("99.0", "ditto", label="Ditto"),
        Row("", "ditto"),
    )

    table = board_table(Board("own", "own", "", rows), comparison)

    assert [row[:3] for row in table.rows] == [
        ["the best", "", "97.9"],
        ["FedAvg", "0", "85.8"],
        [LABELS["per-fedavg"], "1", "95.1"],
        ["Ditto", "", "99.0"],
    ]
    assert [row[3][:4] for row in table.rows] == ["", "50.0", "80.0", "not "]
    assert table.rows[1][4] == table.rows[1][3], "both groups have the same curves"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_tables_name_settings_and_methods_that_their_suites_have(board):
    """A row of a method that is gone would be left out in silence."""
    suite = Suite.load(board.suite)

    names = {method.name for method in suite.methods}

    assert board.setting in {setting.name for setting in suite.settings}
    assert {row.method for row in board.rows if row.method} == names
    assert {method.preset for method in suite.methods if method.preset} <= METHODS.keys()
