"""Claims about adaptation curves and what is read off them."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.config import RunConfig
from nufed.common.errors import WireError
from nufed.common.wire import ClientDescription, EvaluateReply
from nufed.server.adaptation_curves import group_curves, rounds_to_target
from nufed.server.client_curves import ClientCurves
from nufed.server.figures import draw_curves
from nufed.server.history import History
from nufed.server.summary import run_summary


def client(client_id, accuracy, *, loss=None, group="participating", num_test=10, **rest):
    return ClientCurves(
        client_id=client_id,
        group=group,
        num_support=30,
        num_test=num_test,
        test_accuracy=None if accuracy is None else tuple(accuracy),
        test_loss=tuple(loss or [1.0] * len(accuracy)),
        **rest,
    )


TWO = [client("a", [0.2, 0.6], loss=[2.0, 1.0], num_test=10), client("b", [0.4, 1.0], loss=[1.0, 0.0], num_test=30)]


def test_means_are_unweighted_and_weighted_by_test_examples():
    curves = group_curves(TWO, "participating", primary_step=1)

    assert curves.num_clients == 2
    assert curves.accuracy == pytest.approx((0.3, 0.8))
    assert curves.accuracy_weighted == pytest.approx((0.35, 0.9))
    assert curves.loss == pytest.approx((1.5, 0.5))
    assert curves.loss_weighted == pytest.approx((1.25, 0.25))


def test_in_weighted_means_one_client_does_not_outweigh_all_others():
    """It counts ten times the median client, whatever it announces."""
    clients = [client(name, [0.0], num_test=10) for name in "abc"] + [client("d", [1.0], num_test=2**31 - 1)]

    curves = group_curves(clients, "participating", primary_step=0)

    assert curves.accuracy_weighted == pytest.approx((100 / 130,))
    assert group_curves(clients, "participating", primary_step=0, max_weight=1).accuracy_weighted == (0.25,)


def test_losses_at_the_end_of_the_range_are_no_warning():
    clients = [client(name, [0.5], loss=[1.7e308]) for name in "ab"]

    assert group_curves(clients, "participating", primary_step=0).loss == (math.inf,)


def test_gain_area_and_spread_follow_their_definitions():
    curves = group_curves(TWO, "participating", primary_step=1)

    assert curves.gain == pytest.approx(0.5)
    assert curves.area == pytest.approx(0.55)
    assert curves.spread == pytest.approx((statistics.stdev([0.2, 0.4]), statistics.stdev([0.6, 1.0])))


@pytest.mark.parametrize(("num_clients", "worst"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_the_worst_decile_is_rounded_up_and_chosen_at_each_step(num_clients, worst):
    falling = [client(f"c{i:02}", [i / 100, 1 - i / 100]) for i in range(num_clients)]

    curves = group_curves(falling, "participating", primary_step=1)

    last = range(num_clients - worst, num_clients)
    assert curves.worst_decile[0] == pytest.approx(statistics.mean(i / 100 for i in range(worst)))
    assert curves.worst_decile[1] == pytest.approx(statistics.mean(1 - i / 100 for i in last))


def test_one_client_has_no_spread():
    assert group_curves(TWO[:1], "participating", primary_step=1).spread == (0.0, 0.0)


def test_groups_are_kept_apart_and_an_absent_group_is_none():
    clients = [*TWO, client("n", [0.1, 0.2], group="new")]

    assert group_curves(clients, "new", primary_step=1).accuracy == pytest.approx((0.1, 0.2))
    assert group_curves(clients, "participating", primary_step=1).num_clients == 2
    assert group_curves(TWO, "new", primary_step=1) is None


def test_regression_is_measured_by_loss_where_the_worst_is_the_largest_and_a_fall_is_a_gain():
    clients = [client(f"c{i}", None, loss=[float(i), i / 2]) for i in range(11)]

    curves = group_curves(clients, "participating", primary_step=1)

    assert curves.measure == "loss"
    assert curves.accuracy is None
    assert curves.accuracy_weighted is None
    assert curves.worst_decile == pytest.approx((9.5, 4.75))
    assert curves.gain == pytest.approx(2.5)
    assert curves.area == pytest.approx(3.75)


def test_a_diverged_client_shows_as_nan_in_every_number_it_enters():
    clients = [client("a", None, loss=[1.0, math.nan]), client("b", None, loss=[1.0, math.inf])]

    curves = group_curves(clients, "participating", primary_step=1)

    assert curves.loss[0] == 1.0
    assert all(math.isnan(number) for number in (curves.loss[1], curves.worst_decile[1], curves.gain, curves.area))


def test_validation_curves_average_over_the_clients_that_have_them():
    clients = [
        client("a", [0.0, 0.0], validation_accuracy=(0.2, 0.4), validation_loss=(1.0, 2.0)),
        client("b", [0.0, 0.0]),
    ]

    curves = group_curves(clients, "participating", primary_step=1)

    assert curves.validation_accuracy == pytest.approx((0.2, 0.4))
    assert curves.validation_loss == pytest.approx((1.0, 2.0))


accuracies = st.lists(st.floats(0, 1), min_size=3, max_size=3)


@given(st.lists(accuracies, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_numbers_do_not_depend_on_the_order_of_clients(curves, shuffler):
    clients = [client(f"c{i}", curve) for i, curve in enumerate(curves)]
    shuffled = list(clients)
    shuffler.shuffle(shuffled)

    assert group_curves(shuffled, "participating", primary_step=2) == group_curves(
        clients, "participating", primary_step=2
    )


@given(st.lists(accuracies, min_size=1, max_size=30))
def test_the_worst_decile_lies_between_the_worst_client_and_the_mean(curves):
    group = group_curves([client(f"c{i}", curve) for i, curve in enumerate(curves)], "participating", primary_step=2)

    for step in range(3):
        smallest = min(curve[step] for curve in curves)
        assert smallest - 1e-9 <= group.worst_decile[step] <= group.accuracy[step] + 1e-9


def test_the_target_counts_as_reached_when_the_mean_of_three_evaluations_reaches_it():
    evaluations = [(0, 0.1), (10, 0.95), (20, 0.7), (30, 0.9), (40, 0.8), (50, 0.95)]

    assert rounds_to_target(evaluations, 0.85) == 30
    assert rounds_to_target(evaluations, 0.88) == 50


def test_a_target_that_is_never_reached_is_none():
    assert rounds_to_target([(0, 0.1), (10, 0.5)], 0.9) is None
    assert rounds_to_target([], 0.9) is None


def test_a_target_can_be_reached_at_round_0():
    assert rounds_to_target([(0, 0.92), (10, 0.1)], 0.9) == 0


def test_a_mean_that_misses_the_target_by_rounding_alone_reaches_it():
    assert rounds_to_target([(0, 0.05), (10, 0.1), (20, 0.15)], 0.1) == 20


def test_an_evaluation_that_is_nan_reaches_nothing():
    assert rounds_to_target([(0, math.nan), (10, 0.95), (20, 0.95)], 0.9) is None


@given(st.floats(0, 1), st.integers(1, 8))
def test_a_constant_accuracy_reaches_itself_at_once(accuracy, window):
    assert rounds_to_target([(10 * k, accuracy) for k in range(5)], accuracy, window) == 0


ALICE = ClientDescription("alice", "new", num_support=30, num_validation=5, num_test=12)


def test_curves_are_read_from_a_clients_reply():
    metrics = {"test-loss": [1.0, 0.5], "test-accuracy": [0.25, 0.75], "validation-loss": [2, 1]}

    curves = ClientCurves.from_reply(ALICE, EvaluateReply(12, metrics), num_adapt_steps=1)

    assert curves == ClientCurves(
        client_id="alice",
        group="new",
        num_support=30,
        num_validation=5,
        num_test=12,
        test_loss=(1.0, 0.5),
        test_accuracy=(0.25, 0.75),
        validation_loss=(2.0, 1.0),
    )


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"test-accuracy": [0.5, 0.5]}, "'alice' answered without 'test-loss'"),
        ({"test-loss": [1.0]}, "'alice' answered 'test-loss' with 1 numbers; expected a list of 2"),
        ({"test-loss": 1.0}, "with float 1.0"),
        ({"test-loss": [1.0, 1.0], "test-accuracy": [0.1, 0.2, 0.3]}, "'test-accuracy' with 3 numbers"),
    ],
)
def test_a_reply_without_whole_curves_is_refused_naming_client_and_curve(metrics, reason):
    with pytest.raises(WireError, match=reason):
        ClientCurves.from_reply(ALICE, EvaluateReply(12, metrics), num_adapt_steps=1)


def test_losses_at_the_end_of_the_range_reach_no_target_and_end_no_run():
    """A regression has no accuracy, whatever its losses say."""
    assert rounds_to_target([(number, 1.7e308) for number in range(3)], 0.5) == 0
    curves = group_curves([client("a", None, loss=[1.7e308, 1.7e308])], "participating", primary_step=1)
    config = RunConfig().updated({"evaluation.target-accuracy": 0.5, "evaluation.primary-step": 1})
    history = History(evaluations=((1, (1.0, 1.0)), (2, (1.7e308, 1.7e308))))

    summary = run_summary(config, 2, history, {"participating": curves, "new": None}, None)

    assert summary["rounds_to_target"] is None
    assert draw_curves(history.evaluations, curves, None, config=config.updated({"evaluation.num-adapt-steps": 1}))
