"""What a reply may say, value by value; and the table of it in the documentation."""

import math
from pathlib import Path

import pytest

from nufed.common.config import EvaluationConfig
from nufed.common.errors import WireError
from nufed.common.examples import TaskInfo
from nufed.common.message_schema import (
    EVALUATE_REPLY,
    MOST_OTHER_METRICS,
    MOST_OTHER_NUMBERS,
    SCHEMAS,
    STATISTICS_REPLY,
    TRAIN_REPLY,
    check_client_id,
    checked_curves,
    checked_metrics,
    curve_shape,
)

ROOT = Path(__file__).parents[2]
COUNTS = ("num-examples", "gradient-evaluations", "hvps", "with-replacement")
NO_COUNT = [math.inf, math.nan, -math.inf, -1, 0.5, [1, 2, 3], [], True, 2**63, 10**5000, 1e300]
GOOD = {"num-examples": 3}


@pytest.mark.parametrize("value", NO_COUNT, ids=lambda value: str(value)[:9] if value != 10**5000 else "10^5000")
@pytest.mark.parametrize("name", COUNTS)
def test_what_is_no_count_is_refused(name, value):
    with pytest.raises(WireError, match=f"{name}=.* is refused: expected a whole number from 0 to "):
        checked_metrics({**GOOD, name: value}, TRAIN_REPLY)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", [1.0]),
        ("loss", True),
        ("loss", 2**64),
        ("seconds", math.nan),
        ("seconds", -1.0),
        ("seconds", 1e10),
        ("growth", -0.1),
        ("with-replacement", 2),
        ("mine", [1, True]),
        ("mine", 2**64),
        ("mine", "text"),
        ("mine", None),
        ("mine", [[1.0]]),
        ("mine", [0.0] * (MOST_OTHER_NUMBERS + 1)),
        ("m" * 65, 1),
        ("", 1),
        ("mi\nne", 1),
        ("mi\x1b[31mne", 1),
        ("mi\u202ene", 1),
    ],
)
def test_other_values_that_do_not_fit_are_refused(name, value):
    with pytest.raises(WireError) as caught:
        checked_metrics({**GOOD, name: value}, TRAIN_REPLY)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_diverged_clients_loss_is_information():
    metrics = {**GOOD, "loss": math.nan, "growth": math.inf}

    assert repr(checked_metrics(metrics, TRAIN_REPLY)) == repr(metrics)


def test_metrics_that_no_schema_names_are_kept_while_they_are_few():
    few = {**GOOD, "accuracy": 0.5, "mine": [1, 2], "odd": math.nan}
    many = {**GOOD, **{f"m{i}": 1 for i in range(MOST_OTHER_METRICS + 1)}}

    assert repr(checked_metrics(few, TRAIN_REPLY)) == repr(few)
    with pytest.raises(WireError, match=f"at most {MOST_OTHER_METRICS} metrics"):
        checked_metrics(many, TRAIN_REPLY)


def test_whole_numbers_become_integers():
    checked = checked_metrics({"num-examples": 3.0, "hvps": 2.0}, TRAIN_REPLY)

    assert [(value, type(value)) for value in checked.values()] == [(3, int), (2, int)]


CURVES = {"num-examples": 3, "test-loss": [1.0, 0.5], "test-accuracy": [0.0, 1.0]}
S_OF_ONE = {"num_adapt_steps": 1, "primary_step": 1}
SHAPE = curve_shape(EvaluationConfig(**S_OF_ONE), TaskInfo("classification", (2,), 3))


def test_curves_of_the_run_pass():
    assert checked_curves(CURVES, SHAPE) == CURVES
    assert checked_curves(CURVES, None) == CURVES


@pytest.mark.parametrize(
    "changed",
    [
        {"test-accuracy": None},
        {"test-loss": None},
        {"test-accuracy": [math.nan, 0.5]},
        {"test-accuracy": [0.5, math.inf]},
        {"test-accuracy": [200.0, 0.5]},
        {"test-accuracy": [-0.1, 0.5]},
        {"test-accuracy": 0.5},
        {"test-accuracy": []},
        {"test-accuracy": [0.5]},
        {"test-accuracy": [0.5, 0.5, 0.5]},
        {"test-loss": [1.0]},
        {"test-loss": 1.0},
        {"test-loss": [math.nan, 1.0], "test-accuracy": [math.inf, 0.5]},
        {"test-loss": [math.nan, 1.0], "test-accuracy": [0.5, math.nan]},
        {"test-loss": [1.0, -0.5]},
        {"validation-loss": [-1e308, 0.0]},
        {"validation-loss": [1.0]},
        {"validation-accuracy": [math.nan, math.nan]},
        {"validation-accuracy": [5.0, 5.0]},
        {"num-examples": -1},
    ],
)
def test_curves_that_do_not_fit_the_run_are_refused(changed):
    metrics = {name: value for name, value in {**CURVES, **changed}.items() if value is not None}

    with pytest.raises(WireError):
        checked_curves(metrics, SHAPE)


@pytest.mark.parametrize("accuracy", [[0.1, 0.1], [0.1, math.nan]])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_client_may_answer_with_or_without_an_accuracy(loss, accuracy):
    metrics = {**CURVES, "test-loss": [1.0, loss], "test-accuracy": accuracy}

    assert repr(checked_curves(metrics, SHAPE)) == repr(metrics)


def test_a_loss_may_be_rounded_to_just_below_0():
    metrics = {**CURVES, "test-loss": [-1e-7, -0.0]}

    assert checked_curves(metrics, SHAPE) == metrics


def test_a_regression_has_no_accuracy():
    with pytest.raises(WireError, match="regression"):
        checked_curves(CURVES, curve_shape(EvaluationConfig(**S_OF_ONE), TaskInfo("regression", (2,), 1)))


ILL = curve_shape(
    EvaluationConfig(**S_OF_ONE, primary_metric="auroc", report_counts=True), TaskInfo("classification", (2,), 2)
)
CLOSING = {
    "num-examples": 3,
    "test-loss": [1.0, 0.5],
    "test-auroc": [0.5, math.nan],
    "validation-auroc": [math.nan, math.nan],
    "test-specificity": [0.0, 1.0],
    "baseline-loss": 0.7,
    "baseline-auroc": math.nan,
    "interval-specificity": [0.0, 0.3],
    "test-confusion": [1, 0, 0, 2],
}


def test_what_a_client_says_at_the_end_passes_and_may_be_undefined_where_the_metric_may():
    """A client of an earlier version lacks everything but the primary metric and the loss."""
    old = {name: CLOSING[name] for name in ("num-examples", "test-loss", "test-auroc")}

    assert repr(checked_curves(CLOSING, ILL)) == repr(CLOSING)
    assert repr(checked_curves(old, ILL)) == repr(old)


@pytest.mark.parametrize(
    "changed",
    [
        {"test-auroc": None},
        {"test-auroc": [0.5, 1.5]},
        {"test-auroc": [0.5, math.inf]},
        {"test-auroc": [0.5]},
        {"test-specificity": [-0.5, 0.5]},
        {"test-accuracy": [math.nan, 0.5]},
        {"test-r2": [0.5, 0.5]},
        {"baseline-auroc": 2.0},
        {"baseline-auroc": [0.5, 0.5]},
        {"interval-specificity": [0.3, 0.0]},
        {"interval-specificity": [0.0, math.nan]},
        {"interval-specificity": [0.0, 0.5, 1.0]},
        {"interval-specificity": [0.0, 1.5]},
        {"test-confusion": [1, 0, 0, 3]},
        {"test-confusion": [1, 0, 2]},
        {"test-confusion": [4, 0, 0, -1]},
        {"test-confusion": [0.5, 0.5, 1, 1]},
    ],
)
def test_metrics_that_do_not_fit_the_run_are_refused(changed):
    metrics = {name: value for name, value in {**CLOSING, **changed}.items() if value is not None}

    with pytest.raises(WireError):
        checked_curves(metrics, ILL)


def test_apps_of_others_may_report_one_number():
    metrics = {"num-examples": 8, "test-accuracy": 0.75, "eval_loss": 0.5}

    assert checked_curves(metrics, None) == metrics
    with pytest.raises(WireError, match="test-accuracy"):
        checked_curves({**metrics, "test-accuracy": 75.0}, None)


@pytest.mark.parametrize("name", ["a", "client-007", "hôpital n° 3", "医院", "-5", "f0123_45", "(none)", "x" * 128])
def test_names_that_can_stand_in_a_line_are_taken(name):
    assert check_client_id(name) == name


UNFIT = [
    "",
    " ",
    " a",
    "a ",
    "a\nb",
    "a\rb",
    "a\tb",
    "a\0b",
    "\x1b[2Ja",
    "a\u202eb",
    "a\u2066b",
    "a\u200bb",
    "a\u2028b",
]
UNFIT += [
    "a\ud800b",
    "x" * 129,
    "x" * 2_000_000,
    '=HYPERLINK("http://e.org")',
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "@a",
    "\uff1d1+1",
    "\uff20SUM(A1)",
    "a\ufe0f",
    "a\u034f",
    "a\U000e0100",
    "\u3164",
    "\u2800",
    "ho\u0302pital",
    b"a",
    7,
]


@pytest.mark.parametrize("name", UNFIT, ids=lambda name: ascii(name)[:20])
def test_names_that_would_break_a_line_or_a_cell_are_refused(name):
    with pytest.raises(WireError, match=r"client-id=.* is refused") as caught:
        check_client_id(name)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_the_documentation_shows_the_schemas():
    """Every metric with what it may be, word for word."""
    page = (ROOT / "docs" / "decisions" / "0011-messages.md").read_text(encoding="utf-8")
    rows = [
        f"| {kind} | `{name}` | {expected}{', required' if expected.is_required else ''} | {expected.meaning} |"
        for kind, schema in SCHEMAS.items()
        for name, expected in schema.items()
    ]

    assert [row for row in rows if row not in page] == []
    assert len(rows) == 3 + len(TRAIN_REPLY) + len(EVALUATE_REPLY) + len(STATISTICS_REPLY)
