"""What is concluded from finished runs whose numbers are known."""

import math

import numpy as np
import pytest

from nufed.deploy.experiments.comparison import compare, exact_methods
from nufed.deploy.experiments.hypotheses import Graded, judge
from nufed.deploy.experiments.report_tables import differences_table, metrics_table, standing_table
from nufed.deploy.experiments.statistics import Grain, t_interval
from nufed.deploy.experiments.story import verdict_on, winner
from nufed.deploy.experiments.tuning import validation_score
from tests.deploy.experiments.made_runs import LABELS, NUM_STEPS, OPTIONS, made_comparison, made_run

FEDAVG = [0.60, 0.65, 0.70, 0.72, 0.73, 0.74, 0.74]
ONE = [0.40, 0.78, 0.80, 0.81, 0.81, 0.82, 0.82]
TWO = [0.30, 0.70, 0.86, 0.87, 0.88, 0.88, 0.88]


def findings(settings):
    return {finding.name: finding for finding in judge(settings)}


def test_means_and_intervals_are_over_seeds_and_not_over_clients():
    comparison = made_comparison({"fedavg": FEDAVG, "per-fedavg": ONE})

    curve = comparison.curve("per-fedavg", "new")

    by_seed = list(comparison.means("per-fedavg", "new", 2).values())
    assert len(by_seed) == 5
    assert curve[2] == t_interval(by_seed, grain=Grain(1 / 4000))


def test_only_seeds_that_both_methods_have_are_compared():
    runs = [made_run("fedavg", seed, FEDAVG) for seed in (0, 1)] + [
        made_run("per-fedavg", seed, ONE) for seed in (0, 2)
    ]

    differences = compare(runs, LABELS).differences("per-fedavg", "fedavg", "new", 2)

    assert differences == {0: pytest.approx(0.10)}


def test_the_best_is_shown_to_be_better_where_seeds_agree_though_they_vary_more_than_methods():
    comparison = made_comparison({"fedavg": FEDAVG, "per-fedavg": ONE, "meta-2": TWO})

    best = winner(comparison, "new")
    lines = verdict_on(comparison, "new")

    assert (best.method, best.runner_up) == ("meta-2", "per-fedavg")
    assert best.against["per-fedavg"].interval.mean == pytest.approx(0.06, abs=0.005)
    assert "ν = 2 has the best accuracy" in lines[0]
    assert lines[0].endswith("is shown to be better than all 2 other methods.")
    assert lines[1].startswith("ν = 2 against ν = 1: +5.9 points [5.")
    assert "ν = 2 against FedAvg + fine-tuning: +16.0 points" in lines[2]
    assert len(lines) == 3


def test_where_seeds_disagree_nothing_is_shown():
    comparison = made_comparison({"fedavg": ONE, "per-fedavg": [0.001 + value for value in ONE]}, noise=0.02)

    lines = verdict_on(comparison, "new")

    assert "no winner is shown" in lines[0]
    assert lines[0].endswith("but is not shown to be better than the other method.")
    assert "no difference shown" in lines[1]


def settled(seeds, gap, *, clients=1, num_test=20):
    """Return ν = 1 and ν = 2 whose difference at every s is the same on every seed."""
    runs = []
    for seed in range(seeds):
        for method, lead in (("fedavg", 0.0), ("per-fedavg", 0.0), ("meta-2", gap)):
            curve = np.full(NUM_STEPS + 1, 0.5 + 0.05 * seed + lead)
            run = made_run(method, seed, curve, clients=clients, progress=[0.1, 0.5], config=OPTIONS[method])
            for table in run.groups.values():
                table.num_test[:] = num_test
            runs.append(run)
    return compare(runs, LABELS, reference="fedavg", baseline="per-fedavg", target=0.4)


def test_two_seeds_with_the_same_example_are_no_verdict_anywhere():
    """One example of 160: before, `better, p < 0.001, [0.6, 0.6]`."""
    comparison = settled(2, 1 / 160, clients=8)

    lines = verdict_on(comparison, "new")

    assert lines[0].startswith("New clients after 2 steps: no verdict, for which 3 seeds are needed. ν = 2 has the h")
    assert all(line.endswith("no verdict: 2 seeds.") for line in lines[1:])
    told = str(standing_table(comparison, "new").rows) + str(differences_table(comparison, "per-fedavg").rows)
    assert "+0.6 points (seeds +0.6 to +0.6)" in told
    assert "±" not in told + " ".join(lines)
    assert " p " not in told
    assert {finding.verdict for finding in judge([Graded("", 0, comparison)])} == {"no verdict: 2 seeds", "not tested"}


@pytest.mark.parametrize(("examples", "verdict"), [(1, "undecided"), (10, "supported")])
def test_three_seeds_with_the_same_examples_are_shown_by_many_of_them_alone(examples, verdict):
    comparison = settled(3, examples / 20)

    found = findings([Graded("", 0, comparison)])

    assert found["H1"].verdict == verdict
    assert ("no winner is shown" in verdict_on(comparison, "new")[0]) == (verdict == "undecided")
    # rounds to target are 10 on every seed for both, which is known no better than to one evaluation
    assert found["H5"].verdict == "undecided"
    assert all(each.interval.half_width > 0 for each in found["H5"].evidence.values())


def test_where_all_methods_tie_nobody_wins():
    lines = verdict_on(settled(3, 0.0), "participating")

    assert "no winner is shown" in lines[0]
    assert lines[1].endswith("no difference shown, p = 1.000.")
    assert all("no difference shown" in line for line in lines[1:])


def test_for_a_loss_less_is_better():
    runs = [
        made_run(method, seed, np.full(NUM_STEPS + 1, level + 0.01 * seed), loss=True, config=OPTIONS[method])
        for method, level in (("fedavg", 2.0), ("per-fedavg", 0.5))
        for seed in range(3)
    ]
    comparison = compare(runs, LABELS, reference="fedavg", target=1.0)

    difference = comparison.against("fedavg", "new", 2)["per-fedavg"].interval

    assert comparison.best("new", 2) == "per-fedavg"
    assert difference.mean == pytest.approx(1.5)
    assert comparison.targets()["95 % of FedAvg + fine-tuning"] == pytest.approx(2.01 / 0.95)
    assert comparison.worst_decile("fedavg", "new").mean == pytest.approx(2.01 + 0.02)


def test_a_metric_of_which_less_is_better_turns_every_verdict_and_undefined_clients_are_left_out():
    """Brier scores: what wins by accuracy, one minus it, wins here; one client's score is undefined in every run."""
    levels = {"fedavg": FEDAVG, "per-fedavg": ONE, "meta-2": TWO}
    rng = np.random.default_rng(0)
    runs = []
    for method, curve in levels.items():
        for seed in range(5):
            score = 1 - np.asarray(curve) + 0.01 * seed + rng.normal(0, 0.001, NUM_STEPS + 1)
            progress = [0.9, 0.4, 0.1, 0.1] if method == "per-fedavg" else [0.9, 0.9, 0.9, 0.1]
            run = made_run(method, seed, score, measure="brier", progress=progress, config=OPTIONS[method])
            for table in run.groups.values():
                table.measures["brier"][0] = np.nan
            runs.append(run)
    comparison = compare(runs, LABELS, reference="fedavg", baseline="per-fedavg", target=0.5)

    found = findings([Graded("", 0, comparison)])

    assert comparison.measure == "brier"
    assert comparison.best("new", 2) == "meta-2"
    assert (found["H1"].verdict, found["H2"].verdict) == ("supported", "supported")
    assert comparison.metric("fedavg", "new", "brier", 2)[1] == 5
    assert comparison.worst_decile("fedavg", "new").mean > comparison.means("fedavg", "new", 2)[0]
    assert comparison.to_target("per-fedavg", 0.5)[0][0] == 20
    lines = verdict_on(comparison, "new")
    assert "ν = 2 has the best brier" in lines[0]
    assert "better" in lines[1]
    assert list(metrics_table(comparison, "new").rows[0])[1].endswith("(5 undefined)")


def test_step_sizes_are_tuned_by_the_primary_metric():
    group = {"measure": "brier", "better": "lower", "validation_accuracy": [0.9], "validation_loss": [1.0]}
    group |= {"metrics": {"validation-brier": [0.2], "test-brier": [0.7]}, "num_diverged": [0]}

    assert validation_score({"participating": group, "primary_step": 0}) == -0.2
    assert (
        validation_score(
            {
                "participating": {**group, "measure": "f1", "better": "higher"}
                | {"metrics": {"validation-f1": [None]}},
                "primary_step": 0,
            }
        )
        == -math.inf
    )


def test_rounds_and_gradients_to_target_follow_the_mean_of_three_evaluations_and_are_censored():
    progress = {"fedavg": [0.1, 0.2, 0.3, 0.4, 0.4], "per-fedavg": [0.1, 0.6, 0.8, 0.9, 0.9]}
    comparison = made_comparison({"fedavg": FEDAVG, "per-fedavg": ONE}, progress=progress)

    rounds, gradients, sent = comparison.censored_to_target("per-fedavg", 0.75)
    never, _, _ = comparison.censored_to_target("fedavg", 0.75)

    # means of three: 0.1, 0.35, 0.5, 0.767 at round 30
    assert (rounds.median, gradients.median, sent.median) == (30, 150, pytest.approx(0.003))
    assert math.isinf(never.median)
    assert never.text(comparison.limits("fedavg")[0]) == "> 40"


def test_only_plain_exact_methods_stand_for_their_number_of_steps():
    curves = {"fedavg": FEDAVG, "fo-2": TWO, "per-fedavg": ONE, "meta-2": TWO}

    comparison = made_comparison(curves)

    assert exact_methods(comparison) == {0: "fedavg", 1: "per-fedavg", 2: "meta-2"}


def test_more_steps_that_win_late_and_lose_early_support_h1_and_h2():
    found = findings([Graded("", 0, made_comparison({"fedavg": FEDAVG, "per-fedavg": ONE, "meta-2": TWO}))])

    assert found["H1"].verdict == "supported"
    assert found["H2"].verdict == "supported"
    assert all(each.interval.mean == pytest.approx(0.06, abs=0.005) for each in found["H1"].evidence.values())


def test_more_steps_that_lose_contradict_h1():
    found = findings([Graded("", 0, made_comparison({"per-fedavg": TWO, "meta-2": ONE}, reference=""))])

    assert found["H1"].verdict == "contradicted"
    assert found["H2"].verdict == "contradicted"


def test_noise_leaves_h1_undecided():
    close = [value + 0.001 for value in ONE]

    found = findings([Graded("", 0, made_comparison({"per-fedavg": ONE, "meta-2": close}, noise=0.05))])

    assert found["H1"].verdict == "undecided"


def test_a_gap_that_grows_with_the_settings_strength_supports_h3a():
    weak = made_comparison({"per-fedavg": ONE, "meta-2": [value + 0.01 for value in ONE]})
    strong = made_comparison({"per-fedavg": ONE, "meta-2": TWO})

    found = findings([Graded("weak", 0.5, weak), Graded("strong", 1.0, strong)])

    assert found["H3a"].verdict == "supported"
    assert findings([Graded("weak", 0.5, strong), Graded("strong", 1.0, weak)])["H3a"].verdict == "contradicted"
    assert findings([Graded("", 0.0, strong)])["H3a"].verdict == "not tested"


def with_control(two, control, *, smoothness=0.0, name="", noise=0.001):
    alpha = 0.05
    options = {
        "per-fedavg": {"method.inner-lr": alpha, "method.num-inner-steps": 1},
        "meta-2": {"method.inner-lr": alpha, "method.num-inner-steps": 2},
        "one-step-2": {"method.inner-lr": 2 * alpha, "method.num-inner-steps": 1, "evaluation.adapt-lr": alpha},
    }
    rng = np.random.default_rng(1)
    runs = [
        made_run(method, seed, np.asarray(curve) + rng.normal(0, noise, NUM_STEPS + 1), config=options[method])
        for method, curve in (("per-fedavg", ONE), ("meta-2", two), ("one-step-2", control))
        for seed in range(5)
    ]
    return Graded(name, 0.0, compare(runs, {}, baseline="per-fedavg"), smoothness)


def test_the_control_with_one_long_step_decides_h3b():
    assert findings([with_control(TWO, ONE)])["H3b"].verdict == "supported"
    assert "not known" in findings([with_control(TWO, ONE)])["H3b"].note
    assert findings([with_control(TWO, ONE, smoothness=50.0)])["H3b"].verdict == "supported"
    assert findings([with_control(ONE, TWO, smoothness=50.0)])["H3b"].verdict == "contradicted"


@pytest.mark.parametrize(
    ("two", "control", "noise", "verdict"),
    [
        (TWO, TWO, 0.001, "supported"),
        (TWO, TWO, 0.1, "undecided"),
        (TWO, ONE, 0.001, "contradicted"),
        (ONE, TWO, 0.001, "contradicted"),
    ],
)
def test_an_advantage_vanishes_only_if_its_interval_is_negligible(two, control, noise, verdict):
    setting = with_control(two, control, smoothness=0.5, noise=noise)  # ναL = 2 * 0.05 * 0.5

    found = findings([setting])["H3b"]

    assert found.verdict == verdict
    assert "ναL = 0.05" in found.note


def test_both_halves_of_h3b_count_the_first_in_every_setting_and_the_second_in_the_main_one():
    small, large = with_control(TWO, TWO, smoothness=0.5, name="a"), with_control(TWO, ONE, smoothness=50.0, name="b")
    torn, lost = with_control(TWO, ONE, smoothness=0.5, name="c"), with_control(ONE, TWO, smoothness=50.0, name="d")

    found = findings([small, large])["H3b"]

    assert found.verdict == "supported"
    assert len(found.evidence) == 2 * len(small.comparison.groups)
    assert findings([small, torn, large])["H3b"].verdict == "contradicted"
    assert findings([small, lost])["H3b"].verdict == "contradicted"
    assert findings([lost, large])["H3b"].verdict == "supported"


@pytest.mark.parametrize(("first_order", "verdict"), [(ONE, "supported"), (TWO, "contradicted")])
def test_first_order_that_adapts_like_half_its_steps_supports_h4(first_order, verdict):
    comparison = made_comparison({"per-fedavg": ONE, "meta-2": TWO, "fo-2": first_order})

    assert findings([Graded("", 0, comparison)])["H4"].verdict == verdict


@pytest.mark.parametrize(
    ("ours", "verdict"), [([0.1, 0.9, 0.9, 0.9], "supported"), ([0.1, 0.2, 0.3, 0.4], "contradicted")]
)
def test_rounds_to_target_that_grow_with_the_number_of_steps_contradict_h5(ours, verdict):
    progress = {"fedavg": [0.1, 0.5, 0.7, 0.7], "per-fedavg": [0.1, 0.9, 0.9, 0.9], "meta-2": ours}
    comparison = made_comparison({"fedavg": FEDAVG, "per-fedavg": ONE, "meta-2": TWO}, progress=progress, seeds=10)

    assert findings([Graded("", 0, comparison)])["H5"].verdict == verdict


def test_a_method_that_diverged_is_neither_the_best_nor_the_runner_up():
    curves = {"fedavg": FEDAVG, "per-fedavg": ONE, "meta-2": [math.nan] * (NUM_STEPS + 1)}

    best = winner(made_comparison(curves), "new")

    assert (best.method, best.runner_up) == ("per-fedavg", "fedavg")
