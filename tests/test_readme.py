"""What the README shows is run, and what it names exists."""

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nufed
from nufed.common.config import option_descriptions
from nufed.deploy.commands.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text]
    return found


def words(line: str) -> list[str]:
    return re.sub(r"[\d.]+ %", "", line).split()


def numbers(line: str) -> list[float]:
    """Return the percentages of a line; another processor may round another example over the line."""
    return [float(number) for number in re.findall(r"([\d.]+) %", line)]


def test_the_example_of_ones_own_data_and_model_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factories.py").write_text(block("python", "factories tell good parts"), encoding="utf-8")
    command = block("console", "nufed simulate").splitlines()[0].removeprefix("$ nufed ").split()
    printed = block("console", "nufed simulate").splitlines()[1:]

    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "runs")])

    assert result.exit_code == 0, result.output
    shown = [
        line
        for line in result.output.splitlines()
        if line.startswith(("test acc", "of clients", "partic", "new", "  "))
    ]
    assert [words(line) for line in shown] == [words(line) for line in printed]
    assert [numbers(line) for line in shown] == [pytest.approx(numbers(line), abs=3) for line in printed]


def test_the_example_in_python_is_the_run_of_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "factories.py").write_text(block("python", "factories tell good parts"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("factories", None)
    lines = block("console", "nufed simulate").splitlines()
    printed = [numbers(line) for line in lines if line.startswith(("participating", "new"))]
    names: dict = {}

    exec(compile(block("python", "import factories"), "README.md", "exec"), names)

    groups = [names["run"].summary[group] for group in ("participating", "new")]
    shown = [[100 * group["accuracy"][step] for step in (0, 1, 5, 10)] for group in groups]
    assert shown == [pytest.approx(line[:4], abs=3) for line in printed]
    assert len(names["run"].curves("new")) == 4 * 11 * 6  # clients, steps, and metrics with the loss
    assert nufed.evaluate(names["mine"], *names["clients"]["factory-15"]).accuracy > 0.8
    assert names["one"].summary["new"]["accuracy"][5] == pytest.approx(0.925, abs=0.03)  # as the text says


def test_the_strategy_example_is_a_server_app():
    from flwr.serverapp import ServerApp

    names: dict = {}

    exec(compile(block("python", "strategy = MetaFedAvg"), "README.md", "exec"), names)

    assert isinstance(names["app"], ServerApp)


def test_the_first_screen_says_what_it_is_and_shows_the_command_with_its_output():
    first = "\n".join(README.splitlines()[:30])

    assert "make demo" in first
    assert re.search(r"new\s+10\s+[\d.]+ %", first)
    assert "is not for" in first


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z-]+)", README))))
def test_every_flag_in_the_readme_exists(flag):
    commands = ("simulate", "server", "client", "experiment")
    pages = [CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output for name in commands]

    assert any(re.search(rf"{flag}\b", page) for page in pages)


@pytest.mark.parametrize("key", sorted(set(re.findall(r"--set ([a-z.-]+)=", README))))
def test_every_option_in_the_readme_exists(key):
    assert key in option_descriptions()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_every_link_of_the_readme_leads_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE))))
def test_every_make_target_of_the_readme_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
