"""Claims about the picture that a run leaves."""

import math

import pytest

from nufed.common.config import RunConfig
from nufed.server.adaptation_curves import group_curves
from nufed.server.client_curves import ClientCurves
from nufed.server.figures import draw_curves

CONFIG = RunConfig().replace(evaluation__num_adapt_steps=1, evaluation__primary_step=1)


def group(losses, accuracies=None, name="participating"):
    clients = [
        ClientCurves(
            client_id=f"c{i}",
            group=name,
            num_support=30,
            num_test=10,
            test_loss=tuple(loss),
            test_accuracy=accuracies and tuple(accuracies[i]),
        )
        for i, loss in enumerate(losses)
    ]
    return group_curves(clients, name, primary_step=1)


LOSSES = [[1.0, 0.5], [2.0, 0.25]]


@pytest.mark.parametrize("accuracies", [[[0.1, 0.9], [0.2, 1.0]], None])
def test_the_picture_is_a_png_and_the_same_for_the_same_numbers(accuracies):
    participating, new = group(LOSSES, accuracies), group(LOSSES, accuracies, "new")
    evaluations = [(0, (0.1, 0.2)), (10, (0.3, 0.9))]

    first, second = (draw_curves(evaluations, participating, new, config=CONFIG) for _ in range(2))

    assert first.startswith(b"\x89PNG\r\n")
    assert first == second


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_client_leaves_a_gap_not_a_warning(bad):
    diverged = group([[1.0, bad], [1.0, 0.5]])

    image = draw_curves([(0, (1.0, 0.5)), (10, (1.0, bad))], diverged, None, config=CONFIG)

    assert image.startswith(b"\x89PNG\r\n")


def test_a_run_without_evaluations_and_clients_still_has_a_picture():
    assert draw_curves([], None, None, config=CONFIG).startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("num_inner_steps", [0, 1, 5])
def test_any_number_of_inner_steps_fits_a_curve_of_one_step(num_inner_steps):
    config = CONFIG.replace(method__num_inner_steps=num_inner_steps, data__source="npz:" + "long/" * 30 + "$x_1$.npz")

    assert draw_curves([(0, (1.0, 0.5))], group(LOSSES), None, config=config).startswith(b"\x89PNG\r\n")
