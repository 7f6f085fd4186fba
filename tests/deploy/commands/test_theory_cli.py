"""`nufed theory` as typed: given constants, measured constants, JSON, and refusals."""

import json

import pytest
import typer
from typer.testing import CliRunner

from nufed.common.errors import ConfigError
from nufed.common.theory.advice import describe, recommend
from nufed.common.theory.constants import Constants, MetaStep
from nufed.common.theory.convergence import RunShape
from nufed.deploy.commands.cli import main
from nufed.deploy.commands.theory import register

GIVEN = ["--L", "1", "--rho", "1", "--B", "1"]


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)

    @app.command()
    def other():
        """Keep `theory` a subcommand."""

    def invoke(*arguments):
        result = CliRunner().invoke(app, ["theory", *arguments], env={"COLUMNS": "120"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


def test_given_constants_print_the_numbers_of_the_theory(run):
    output = json.loads(
        run(*GIVEN, "--mu", "0", "--gamma-g", "0.3", "--nu", "0,2", "--rounds", "100", "--fraction", "0.25", "--json")
    )

    constants = Constants(1.0, 1.0, 1.0, gamma_g=0.3, mu=0.0)
    expected = describe(
        recommend(constants, [0, 2], MetaStep(0, 0.0, "exact", 20, 20, 20), RunShape(1, 1, 5, 100, 20, 5))
    )
    assert output["measured"] is False
    assert {row["symbol"]: row["values"] for row in output["rows"]} == {
        row.symbol: pytest.approx(list(row.values)) for row in expected
    }


def test_the_table_names_every_nu_what_binds_and_what_the_numbers_are_not(run):
    output = run(*GIVEN, "--nu", "1,5")

    for text in ("ν = 1", "ν = 5", "L_F", "binds", "α = 1/(ν L)", "These are bounds"):
        assert text in output


def test_a_given_inner_step_size_is_judged(run):
    output = json.loads(run(*GIVEN, "--inner-lr", "0.3", "--nu", "2", "--json"))

    assert output["advice"][0]["inner_lr"] == 0.3


def test_without_constants_they_are_measured_on_the_data_and_model(run):
    output = json.loads(
        run(
            *("--dataset", "sensors", "--model", "mlp", "--clients", "4", "--new-clients", "0", "--nu", "0,1"),
            *("--set", "model.hidden-sizes=", "--local-steps", "1", "--measure-clients", "2", "--json"),
        )
    )

    assert output["measured"] is True
    assert output["measurement"]["num_clients"] == 2
    assert output["constants"]["L"] > 0
    # a linear model with cross-entropy is convex, up to rounding
    assert output["constants"]["mu"] > -0.05 * output["constants"]["L"]
    # one direction curves much more than all others, so that α = 1/L is far too short; what short training finds is not
    assert output["advice"][1]["trial_inner_lr"] > 2 * output["advice"][1]["inner_lr"]
    assert output["advice"][1]["trial_local_lr"] > 0
    assert [row["symbol"] for row in output["rows"]][:2] == ["α try", "β try"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--L", "1"], "--rho, --B is missing"),
        ([*GIVEN, "--dataset", "digits"], "data.source contradicts the given constants"),
        ([*GIVEN, "--method", "pfedme"], "method.objective=moreau"),
        (["--method", "anil"], "method.adapted-part=head"),
        ([*GIVEN, "--set", "method.max-grad-norm=1"], "method.max-grad-norm=1"),
        ([*GIVEN, "--nu", "1,x"], "--nu='1,x' is refused"),
        ([*GIVEN, "--nu", "5000"], "whole numbers from 0 to 1000"),
        ([*GIVEN, "--mu", "7"], "mu=7"),
    ],
)
def test_what_contradicts_itself_is_refused(run, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(*arguments)


@pytest.mark.parametrize("width", [40, 70, 80, 200])
def test_the_table_is_whole_at_any_width(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))

    main(["theory", "--L", "1", "--rho", "1", "--B", "1"])

    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= width
    numbers = ("6.94", "9.28", "10.5", "smoothness")
    assert all(number in printed for number in numbers)
