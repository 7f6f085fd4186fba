"""What contradicts what under differential privacy and secure aggregation: each row of the table, and its nearest."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.privacy.publishing import PUBLISHABLE, Publication
from nufed.common.privacy.rules import CONTRADICTIONS, check_attack, check_privacy
from nufed.deploy.commands.cli import app
from nufed.deploy.simulation.engines import prepare

DOCS = Path(__file__).parents[3] / "docs" / "privacy.md"
CLIENT = {"privacy.dp": "client", "privacy.clip": 1.0, "privacy.noise": 1.0}
RECORD = {**CLIENT, "privacy.dp": "record"}
SECURE = {"privacy.secure-aggregation": True}

# Row -> what is refused, and what changes to the nearest run that is allowed (None: the option is left out).
ROWS = {
    "dp-without-clip": ({**CLIENT, "privacy.clip": 0.0}, {"privacy.clip": 1e-3}),
    "dp-without-noise": ({**CLIENT, "privacy.noise": 0.0}, {"privacy.epsilon": 3.0}),
    "dp-options-without-dp": ({"privacy.noise": 1.0}, {"privacy.noise": 0.0}),
    "hvp-clip-without-record-dp": ({**CLIENT, "privacy.hvp-clip": 1.0}, {"privacy.dp": "record"}),
    "cohort-cap-without-client-dp": ({**RECORD, "privacy.cohort-cap": 3.0}, {"privacy.dp": "client"}),
    "delta-too-large": ({**CLIENT, "privacy.delta": 0.05}, {"privacy.delta": 0.04}),
    "robust-means-with-client-dp": ({**CLIENT, "federation.aggregation": "median"}, {"privacy.dp": "record"}),
    "example-weights-with-dp": ({**RECORD, "federation.weighting": "examples"}, {"federation.weighting": "uniform"}),
    "observed-step-sizes-with-client-dp": (
        {**CLIENT, "method.step-sizes": "observed", "method.num-inner-steps": 0},
        {"method.step-sizes": "fixed"},
    ),
    "early-end-of-rounds-with-client-dp": (
        {**CLIENT, "federation.min-reply-fraction": 0.9},
        {"federation.min-reply-fraction": 1.0},
    ),
    "over-selection-with-client-dp": ({**CLIENT, "federation.over-selection": 0.3}, {"privacy.dp": "record"}),
    "buffered-mode-with-client-dp": ({**CLIENT, "federation.mode": "buffered"}, {"privacy.dp": "record"}),
    "local-training-with-dp": ({**RECORD, "federation.training": "local"}, {"federation.training": "federated"}),
    "client-curves-outside-simulations": (
        {**CLIENT, "data.source": "private", "privacy.publish": "client-curves"},
        {"data.source": "digits"},
    ),
    "federated-statistics-with-dp": (
        {**CLIENT, "data.source": "private", "data.scale": "federated"},
        {"privacy.publish": "statistics"},
    ),
    "run-wide-scales-with-dp": ({**CLIENT, "data.target-scale": "run"}, {"data.target-means": "1.0"}),
    "counts-with-dp": (
        {**CLIENT, "evaluation.report-counts": True, "privacy.publish": "evaluation"},
        {"privacy.publish": "evaluation,examples"},
    ),
    "shots-with-dp": ({**CLIENT, "evaluation.shots": "1,5"}, {"privacy.publish": "evaluation,client-curves,examples"}),
    "target-with-dp": ({**CLIENT, "evaluation.target-metric": 0.9}, {"privacy.publish": "evaluation"}),
    "hessian-free-with-record-dp": ({**RECORD, "method.estimator": "hessian-free"}, {"privacy.dp": "client"}),
    "other-inner-steps-with-record-dp": ({**RECORD, "method.adapted-part": "head"}, {"method.adapted-part": "all"}),
    "own-part-with-record-dp": ({**RECORD, "method.client-state": "head"}, {"method.client-state": "model"}),
    "untrained-part-with-client-dp": ({**CLIENT, "method.trained-part": "body"}, {"method.trained-part": "all"}),
    "compile-with-record-dp": ({**RECORD, "method.compile": "on"}, {"method.compile": "auto"}),
    "class-weights-with-record-dp": ({**RECORD, "task.class-weights": "balanced"}, {"task.class-weights": "none"}),
    "local-target-scale-with-record-dp": (
        {**RECORD, "data.source": "private", "data.task": "regression"},
        {"data.target-means": "1.0", "data.target-scales": "2.0"},
    ),
    "holdout-with-record-dp": (
        {**RECORD, "method.outer-holdout-fraction": 0.5},
        {"method.outer-holdout-fraction": 0.0},
    ),
    "few-support-examples-with-record-dp": ({**RECORD, "data.support-examples": 5}, {"data.support-examples": 0}),
    "robust-means-with-secure-aggregation": (
        {**SECURE, "federation.aggregation": "geometric-median"},
        {"federation.aggregation": "mean"},
    ),
    "small-cohort-with-secure-aggregation": (
        {**SECURE, "federation.participation-fraction": 0.1},
        {"federation.participation-fraction": 0.15},
    ),
    "early-end-of-rounds-with-secure-aggregation": (
        {**SECURE, "federation.min-reply-fraction": 0.6},
        {"privacy.secure-threshold": 0.6},
    ),
    "over-selection-with-secure-aggregation": (
        {**SECURE, "federation.over-selection": 0.5},
        {"federation.over-selection": 0.4},
    ),
    "buffered-mode-with-secure-aggregation": (
        {**SECURE, "federation.mode": "buffered"},
        {"federation.mode": "synchronous"},
    ),
    "local-training-with-secure-aggregation": (
        {**SECURE, "federation.training": "local"},
        {"federation.training": "federated"},
    ),
    "secure-options-without-secure-aggregation": ({"privacy.secure-threshold": 0.9}, SECURE),
}


def refusal(options: dict) -> str:
    with pytest.raises(ConfigError) as raised:
        check_privacy(RunConfig.parse(options))
    return str(raised.value)


@pytest.mark.parametrize("row", CONTRADICTIONS, ids=lambda row: row.id)
def test_a_contradiction_is_refused_with_the_reason_and_the_way_out_and_its_nearest_run_is_not(row):
    refused, changes = ROWS[row.id]
    config = RunConfig.parse(refused)

    message = refusal(refused)

    assert message == row.message(config)
    assert message.endswith(f". {row.remedy}.")
    assert "{" not in message
    check_privacy(RunConfig.parse({**refused, **changes}))


def test_noise_and_epsilon_together_are_a_noise_and_a_budget():
    check_privacy(RunConfig.parse({**CLIENT, "privacy.epsilon": 2.0}))


def test_a_name_that_nothing_is_published_by_is_refused_with_the_nearest():
    assert "Did you mean 'evaluation'?" in refusal({**CLIENT, "privacy.publish": "evalution"})
    assert Publication.of(RunConfig()).withheld == ()
    published = Publication.of(RunConfig.parse({**CLIENT, "privacy.publish": "training-loss, evaluation"}))
    assert (published.shown, len(published.withheld)) == (("evaluation", "training-loss"), len(PUBLISHABLE) - 2)


def test_a_simulation_a_server_and_a_check_of_a_client_refuse_before_they_start(tmp_path):
    contradictory = ("--dp", "client", "--dp-clip", "1", "--dp-noise", "1", "--weighting", "examples")
    settings = ("--set", "data.num-clients=1000000")  # data that could not be dealt; they are not asked for
    options = tmp_path / "run.json"
    options.write_text(RunConfig.parse({**CLIENT, "federation.weighting": "examples"}).to_json())

    with pytest.raises(ConfigError, match="Set --weighting uniform"):
        prepare(RunConfig.load(options))
    for command in (
        ("simulate", *contradictory, *settings, "--out", str(tmp_path)),
        ("server", *contradictory, "--insecure", "--listen", "127.0.0.1:0", "--out", str(tmp_path), "--wait", "0"),
        ("check", "--config", str(options), "--name", "a", "--data", f"csv:{options}?label=y", "--insecure"),
    ):
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, ConfigError), (command, result.output)
        assert "Set --weighting uniform" in str(result.exception)
    assert list(tmp_path.iterdir()) == [options]


def test_an_attack_on_models_that_are_masked_is_refused():
    with pytest.raises(ConfigError, match="Choose --attack label-flip"):
        check_attack(RunConfig.parse(SECURE), "sign-flip")
    check_attack(RunConfig.parse(SECURE), "label-flip")
    check_attack(RunConfig.parse(CLIENT), "sign-flip")


def documented(text: str) -> str:
    """Return a row's text as the docs have it, where an option's value is whatever it is."""
    return re.sub(r"\{[^}]*\}", "…", text)


def test_the_table_of_the_docs_has_every_row_in_order():
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    expected = [f"| `{row.id}` | {documented(row.reason)}. | {documented(row.remedy)}. |" for row in CONTRADICTIONS]

    start = lines.index(expected[0])
    assert lines[start : start + len(expected)] == expected


def test_the_docs_name_everything_that_can_be_published():
    text = DOCS.read_text(encoding="utf-8")

    for name, what in PUBLISHABLE.items():
        assert f"| `{name}` | {what} |" in text
