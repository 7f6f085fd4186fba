"""Claims about each metric: it is what torchmetrics and closed forms say, NaN where there is no answer."""

import math

import numpy as np
import pytest
import torch

from nufed.common.config import EvaluationConfig
from nufed.common.data.target_scaling import TargetScaling
from nufed.common.errors import ConfigError
from nufed.common.examples import TaskInfo
from nufed.common.metrics import METRICS, evaluate_metrics, judging, metrics_for
from nufed.common.metrics.intervals import bootstrap, wilson
from nufed.common.metrics.judged import Judged
from nufed.common.metrics.judging import compute_all, find_metric

N = 60
DRAW = torch.Generator().manual_seed(5)


def classes(num_classes):
    outputs = torch.randn(N, num_classes, generator=DRAW).mul(4).round() / 2  # so coarse that there are ties
    return TaskInfo("classification", (3,), num_classes), outputs, torch.randint(0, num_classes, (N,), generator=DRAW)


TWO, FOUR = classes(2), classes(4)
LABELS = (
    TaskInfo("multi-label", (3,), 3),
    torch.randn(N, 3, generator=DRAW, dtype=torch.float64),
    torch.randint(0, 2, (N, 3), generator=DRAW).double(),
)
VALUES = (
    TaskInfo("regression", (3,), 2),
    torch.randn(N, 2, generator=DRAW, dtype=torch.float64),
    torch.randn(N, 2, generator=DRAW, dtype=torch.float64),
)
COUNTS = (
    TaskInfo("counts", (3,), 1),
    torch.randn(N, generator=DRAW, dtype=torch.float64),
    torch.poisson(torch.full((N,), 1.5, dtype=torch.float64), generator=DRAW),
)
MASKS = (
    TaskInfo("segmentation", (1, 4, 4), 3),
    torch.randn(5, 3, 4, 4, generator=DRAW),
    torch.randint(0, 3, (5, 4, 4), generator=DRAW),
)
TOKENS = (
    TaskInfo("tokens", (7,), 6),
    torch.randn(5, 7, 6, generator=DRAW, dtype=torch.float64),
    torch.where(torch.rand(5, 7, generator=DRAW) < 0.2, -100, torch.randint(0, 6, (5, 7), generator=DRAW)),
)


def found(case, *names):
    task, outputs, targets = case
    return evaluate_metrics(names or metrics_for(task), task, outputs, targets)


def by_torchmetrics(case):
    """Return metric -> number, computed by torchmetrics' functions from probabilities."""
    import torchmetrics.functional as tm
    from torchmetrics.functional import classification as of_classes

    task, outputs, targets = case
    num = task.num_outputs
    if task.kind == "classification":
        chances = outputs.double().softmax(1)
        each = {"num_classes": num, "average": "macro"}
        expected = {
            "accuracy": of_classes.multiclass_accuracy(chances, targets, num_classes=num, average="micro"),
            "balanced-accuracy": of_classes.multiclass_recall(chances, targets, **each),
            "f1": of_classes.multiclass_f1_score(chances, targets, **each),
            "auroc": of_classes.multiclass_auroc(chances, targets, **each),
            "average-precision": of_classes.multiclass_average_precision(chances, targets, **each),
            "calibration-error": of_classes.multiclass_calibration_error(chances, targets, num_classes=num),
        }
        if num == 2:
            one = chances[:, 1]
            expected |= {
                "auroc": of_classes.binary_auroc(one, targets),
                "average-precision": of_classes.binary_average_precision(one, targets),
                "sensitivity": of_classes.binary_recall(chances.argmax(1), targets),
                "specificity": of_classes.binary_specificity(chances.argmax(1), targets),
                "brier": tm.mean_squared_error(one, targets.double()),
            }
        return expected
    if task.kind == "multi-label":
        chances, classes_of = outputs.sigmoid(), targets.long()
        each = {"num_labels": num, "average": "macro"}
        return {
            "accuracy": of_classes.multilabel_accuracy(chances, classes_of, **each),
            "f1": of_classes.multilabel_f1_score(chances, classes_of, **each),
            "auroc": of_classes.multilabel_auroc(chances, classes_of, **each),
            "average-precision": of_classes.multilabel_average_precision(chances, classes_of, **each),
            "sensitivity": of_classes.multilabel_recall(chances, classes_of, **each),
            "specificity": of_classes.multilabel_specificity(chances, classes_of, **each),
        }
    if task.kind == "regression":
        return {
            "mae": tm.mean_absolute_error(outputs, targets),
            "mae-1": tm.mean_absolute_error(outputs[:, 1], targets[:, 1]),
            "rmse": tm.mean_squared_error(outputs, targets, squared=False, num_outputs=2).mean(),
            "rmse-0": tm.mean_squared_error(outputs[:, 0], targets[:, 0], squared=False),
            "r2": tm.r2_score(outputs, targets),
            "r2-1": tm.r2_score(outputs[:, 1], targets[:, 1]),
        }
    if task.kind == "counts":
        rates = outputs.exp()
        return {
            "deviance": tm.tweedie_deviance_score(rates, targets, power=1.0),
            "mae": tm.mean_absolute_error(rates, targets),
            "rmse": tm.mean_squared_error(rates, targets, squared=False),
        }
    if task.kind == "segmentation":
        each = {"num_classes": num, "average": "none"}
        return {
            "accuracy": of_classes.multiclass_accuracy(outputs, targets, num_classes=num, average="micro"),
            "dice": of_classes.multiclass_f1_score(outputs, targets, **each)[1:].mean(),
            "iou": of_classes.multiclass_jaccard_index(outputs, targets, **each)[1:].mean(),
        }
    return {
        "perplexity": tm.text.perplexity(outputs, targets, ignore_index=-100),
        "accuracy": of_classes.multiclass_accuracy(
            outputs.transpose(1, 2), targets, num_classes=num, average="micro", ignore_index=-100
        ),
    }


@pytest.mark.parametrize("case", [TWO, FOUR, LABELS, VALUES, COUNTS, MASKS, TOKENS], ids=lambda case: case[0].kind)
def test_metrics_are_what_torchmetrics_computes(case):
    expected = {name: float(value) for name, value in by_torchmetrics(case).items()}

    assert found(case, *expected) == pytest.approx(expected, abs=1e-6)


def test_what_torchmetrics_lacks_follows_its_closed_form():
    (_, outputs, targets), numbers = FOUR, found(FOUR)
    chances = np.exp(outputs.double().numpy()) / np.exp(outputs.double().numpy()).sum(1, keepdims=True)
    hot = np.eye(4)[targets]
    signs = np.where(LABELS[2] > 0, 1.0, -1.0)

    assert numbers["brier"] == pytest.approx(((chances - hot) ** 2).sum(1).mean())
    assert numbers["log-loss"] == pytest.approx(-np.log(chances[np.arange(N), targets]).mean())
    labels = found(LABELS)
    assert labels["log-loss"] == pytest.approx(np.log1p(np.exp(-signs * LABELS[1].numpy())).mean())
    assert labels["brier"] == pytest.approx(((LABELS[1].sigmoid() - LABELS[2]) ** 2).mean().item())
    assert labels["balanced-accuracy"] == pytest.approx((labels["sensitivity"] + labels["specificity"]) / 2)
    assert 0 < labels["calibration-error"] < 1


def test_every_metric_is_held_against_something():
    covered = {"brier", "log-loss", "balanced-accuracy", "calibration-error"}
    for case in (TWO, FOUR, LABELS, VALUES, COUNTS, MASKS, TOKENS):
        covered |= by_torchmetrics(case).keys()

    assert set(METRICS) <= covered


@pytest.mark.parametrize("case", [TWO, FOUR, LABELS, VALUES, COUNTS, MASKS, TOKENS], ids=lambda case: case[0].kind)
def test_several_models_and_padded_clients_are_judged_as_one_by_one(case):
    """The cohort engine pads clients to one length, and steps of a curve are judged together."""
    task, outputs, targets = case
    short = len(outputs) // 2
    both = torch.stack([outputs, outputs.flip(-1) if task.kind != "segmentation" else -outputs])
    counted = torch.ones(2, len(outputs), dtype=torch.bool)
    counted[1, short:] = False
    computes = {name: find_metric(name, task)[2] for name in metrics_for(task)}

    together = compute_all(computes, Judged(both, torch.stack([targets, targets]), counted, -100))

    alone = [found((task, both[0], targets)), found((task, both[1][:short], targets[:short]))]
    for name, values in together.items():
        assert values.tolist() == pytest.approx([each[name] for each in alone], abs=1e-9, nan_ok=True), name


def test_one_class_leaves_undefined_what_compares_two():
    task, outputs, _ = TWO
    ill = torch.ones(N, dtype=torch.long)

    numbers = found((task, outputs, ill))

    undefined = {name for name, value in numbers.items() if math.isnan(value)}
    assert undefined == {"auroc", "average-precision", "balanced-accuracy", "specificity"}
    assert all(METRICS[name].look.may_be_undefined and METRICS[name].undefined for name in undefined)


def test_a_model_that_calls_everybody_ill_is_seen_through():
    """115 of 123 patients are ill: the accuracy of the one answer is 93.5 %, and nobody healthy is recognized."""
    targets = torch.tensor([1] * 115 + [0] * 8)
    outputs = torch.zeros(123, 2)
    outputs[:, 1] = 1.0

    numbers = found((TWO[0], outputs, targets))

    assert numbers["accuracy"] == pytest.approx(115 / 123)
    assert (numbers["balanced-accuracy"], numbers["auroc"]) == (0.5, 0.5)
    assert (numbers["sensitivity"], numbers["specificity"]) == (1.0, 0.0)


@pytest.mark.parametrize("targets", [torch.full((4, 1), 3.0), torch.tensor([[2.5]])], ids=["alike", "one"])
def test_r2_is_undefined_where_targets_do_not_vary(targets):
    outputs = torch.zeros(len(targets), 1)

    numbers = evaluate_metrics(["r2", "mae"], TaskInfo("regression", (1,), 1), outputs, targets)

    assert math.isnan(numbers["r2"])
    assert numbers["mae"] == pytest.approx(float(targets.abs().mean()))


@pytest.mark.parametrize("case", [TWO, FOUR, LABELS, VALUES, COUNTS, MASKS, TOKENS], ids=lambda case: case[0].kind)
def test_outputs_that_are_nan_have_no_metric(case):
    task, outputs, targets = case
    broken = outputs.clone()
    broken.view(-1)[0] = math.nan

    assert all(math.isnan(value) for value in found((task, broken, targets)).values())


def test_scores_of_masked_classes_may_be_minus_infinite():
    outputs = torch.tensor([[0.0, 1.0, -math.inf], [2.0, 1.0, -math.inf], [0.0, 3.0, -math.inf]])

    numbers = found((TaskInfo("classification", (1,), 3), outputs, torch.tensor([1, 0, 1])), "accuracy", "auroc")

    assert numbers == {"accuracy": 1.0, "auroc": 1.0}


def test_metrics_are_of_values_in_their_own_units():
    scaled, scaling = (torch.tensor([[0.1], [-0.2]]), torch.tensor([[0.0], [0.0]])), TargetScaling((100.0,), (10.0,))

    numbers = evaluate_metrics(["mae"], TaskInfo("regression", (1,), 1), *scaled, scaling)

    assert numbers == pytest.approx({"mae": 1.5})


@pytest.mark.parametrize(
    ("options", "task", "reason"),
    [
        ({"metrics": "auto,acuracy"}, TWO[0], "'acuracy' is unknown. Did you mean 'accuracy'"),
        ({"metrics": "r2"}, TWO[0], "'r2' is for regression, and the task is classification"),
        ({"metrics": "sensitivity"}, FOUR[0], "of two classes, and the task is classification with 4"),
        ({"metrics": "mae-2"}, VALUES[0], "'mae-2' is unknown"),
        ({"metrics": "accuracy,,f1"}, TWO[0], "has an empty name"),
        ({"primary_metric": "dice"}, TWO[0], "evaluation.primary-metric='dice' is for segmentation"),
        ({"metrics": "math:nothing"}, TWO[0], "names 'nothing'"),
    ],
)
def test_metrics_that_are_none_of_the_task_are_refused_by_name(options, task, reason):
    with pytest.raises(ConfigError, match=reason):
        judging(EvaluationConfig(**options), task)


@pytest.mark.parametrize("few", [5, 30])
def test_wilsons_interval_covers_in_about_95_of_100_cases(few):
    """Summed over all outcomes, weighted by how likely each is."""
    for share in (0.1, 0.5, 0.8):
        covered = sum(
            math.comb(few, hits) * share**hits * (1 - share) ** (few - hits)
            for hits in range(few + 1)
            if wilson(hits, few)[0] <= share <= wilson(hits, few)[1]
        )
        assert 0.86 < covered <= 1.0
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # as in Brown, Cai and DasGupta 2001
    assert wilson(0, 8)[0] == 0.0
    assert wilson(8, 8)[1] == 1.0


def test_the_bootstrap_is_seeded_and_about_as_wide_as_normal_theory_says():
    values = torch.randn(50, generator=DRAW, dtype=torch.float64)

    low, high = bootstrap(lambda rows: values[rows].mean(1), 50, 1, 0, "a")

    reach = 1.96 * values.std() / math.sqrt(50)
    assert (high - low) / 2 == pytest.approx(float(reach), rel=0.2)
    assert (low, high) == bootstrap(lambda rows: values[rows].mean(1), 50, 1, 0, "a")
    assert bootstrap(lambda rows: values[rows].mean(1) * math.nan, 50, 1, 0, "a") is None
