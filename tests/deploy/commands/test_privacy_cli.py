"""`nufed privacy` plans the run that the options of `simulate` describe."""

import json
import math

import pytest

from nufed.common.config import RunConfig
from nufed.common.privacy.accounting import SampledGaussian, epsilon
from nufed.common.privacy.record import record_plan
from nufed.deploy.commands.cli import main


def planned(capsys, *arguments):
    assert main(["privacy", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_forty_hospitals_are_told_that_they_are_too_few(capsys):
    assert main(["privacy", "--clients", "40", "--fraction", "0.5", "--rounds", "150", "--noises", "4"]) == 0
    told = " ".join(capsys.readouterr().out.split())

    assert "n = 40 clients, q = 0.5, K = 150 rounds, δ = 0.0173 (n^-1.1)" in told
    assert "4 3.86 10.4 0.2 C 25" in told
    assert "With 40 clients, ε = 4 needs z ≈ 3.9." in told
    assert "too few clients" in told
    assert "--dp record" in told


def test_a_plan_holds_what_the_run_of_these_options_would_spend(capsys, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        "[data]\nnum-clients = 1000\n[federation]\nnum-rounds = 200\nparticipation-fraction = 0.1\n"
        '[privacy]\ndp = "client"\nclip = 2.0\nepsilon = 3.0\ncohort-cap = 1.2\n'
    )
    plan = planned(capsys, "--config", str(config), "--set", "privacy.delta=1e-5", "--epsilons", "8")

    first, second = plan["rows"]
    for row, asked in ((first, 3), (second, 8)):
        step = SampledGaussian(row["noise"], 0.1, 1000, 120)
        assert row["epsilon"] == epsilon({step: 200}, 1e-5)
        assert 0.99 * asked <= row["epsilon"] <= asked
        assert row["unsampled"] == epsilon({SampledGaussian(row["noise"]): 200}, 1e-5)
        assert row["coordinate_noise"] == pytest.approx(row["noise"] / 100)
        assert row["coordinate_noise"] * math.sqrt(row["parameters"]) == pytest.approx(1)
    assert (plan["delta"], plan["is_default_delta"], plan["is_too_small"], plan["refusals"]) == (1e-5, False, False, [])


def test_a_cohort_is_what_drawing_it_gives(capsys):
    """Of three clients at q = 1/2 the eight samples are equally likely; one of them has more than two, one nobody."""
    plan = planned(capsys, "--clients", "3", "--fraction", "0.5", "--set", "privacy.cohort-cap=1.3", "--noises", "9")

    assert plan["cohort"] == {"expected": 1.5, "cap": 2, "above_cap": pytest.approx(1 / 8), "empty": 1 / 8}


@pytest.mark.parametrize("estimator", ["exact", "first-order"])
def test_a_plan_of_records_is_that_of_the_client(capsys, estimator):
    options = ["--dp", "record", "--inner-steps", "2", "--estimator", estimator, "--batch-size", "50"]
    plan = planned(capsys, *options, "--local-steps", "3", "--rounds", "10", "--examples", "2000", "--noises", "1.3")

    config = RunConfig().updated(
        {
            "privacy.dp": "record",
            "privacy.clip": 1.0,
            "privacy.noise": 1.3,
            "method.estimator": estimator,
            "method.num-inner-steps": 2,
            "method.num-local-steps": 3,
            "method.batch-size": 50,
            "federation.num-rounds": 10,
        }
    )
    assert plan["rows"][0]["epsilon"] == record_plan(config, 2000).epsilon()
    assert sum(times for _, _, times in plan["mechanisms"]) == 3 * (3 if estimator == "first-order" else 5)
    assert plan["divisor"] == 50


def test_what_simulate_would_refuse_is_said(capsys):
    assert main(["privacy", "--weighting", "examples", "--noises", "1"]) == 0

    told = " ".join(capsys.readouterr().out.split())
    assert "would refuse this run: privacy.dp=client contradicts federation.weighting" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noises", "1,two"], "--noises='1,two' is refused: expected numbers above 0"),
        (["--epsilons", "0"], "--epsilons='0' is refused"),
        (["--epsilons", "inf"], "--epsilons='inf' is refused"),
        (["--noises", ""], "--noises='' is refused"),
        (["--dp-delta", "1e-10", "--epsilons", "1e-8"], "no noise multiplier from 0.01 to 1e+06 gives epsilon = 1e-08"),
        (["--dp", "record"], "Expected --examples N"),
        (["--examples", "100"], "--examples 100 has a meaning with --dp record alone"),
        (["--dp", "record", "--examples", "0"], "Invalid value for '--examples'"),
        (["--dp", "records"], "records"),
        (["--rounds", "0"], "Expected at least one round to plan for, got 0"),
        (["--fraction", "1.5"], "federation.participation-fraction"),
        (["--dp-delta", "1e-13"], "delta must lie between 1e-12 and 1, got 1e-13"),
    ],
)
def test_wrong_arguments_are_refused(capsys, arguments, message):
    assert main(["privacy", "--clients", "100", *arguments]) == 2

    told = capsys.readouterr()
    assert message in told.err
    assert not told.out
