"""Claims about what the program says of itself: help texts, completion in a shell, tables, and its version."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from rich.cells import cell_len

from nufed.common.config import RunConfig, option_descriptions
from nufed.deploy.commands.cli import app, main
from nufed.deploy.commands.run_options import FLAGS, allowed_values
from nufed.deploy.commands.tables import table_lines
from nufed.deploy.commands.version import STAMP, find_commit
from nufed.server.progress_lines import describe_run

PROGRAM = typer.main.get_command(app)


def commands(command, *path):
    """Yield (words behind `nufed`, command) of everything that can be typed."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, *path, name)
    else:
        yield path, command


def words(text):
    """Return a printed page as one line, without frames and markup."""
    return " ".join(re.sub(r"[│╭╮╰╯─`]", " ", text).split())


@pytest.mark.parametrize(("path", "command"), list(commands(PROGRAM)), ids=lambda value: str(value)[:40])
def test_help_explains_every_argument_and_option_of_a_command(monkeypatch, capsys, path, command):
    monkeypatch.setenv("COLUMNS", "400")

    code = main([*path, "--help"])

    page = words(capsys.readouterr().out)
    assert code == 0
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} has no help text"
        assert words(parameter.help) in page


def test_help_of_positional_arguments_survives_whatever_click_does_with_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    shown = {path: (main([*path.split(), "--help"]), words(capsys.readouterr().out))[1] for path in ARGUMENTS}

    assert all(text in shown[path] for path, text in ARGUMENTS.items())


ARGUMENTS = {
    "experiment": "name of a suite, or a TOML file; list names them",
    "report": "folders of experiments, or of single runs",
    "certs add-client": "the client's name",
    "certs admit": "the file NAME.csr that a client sent",
    "certs revoke": "the client's name",
}


def test_help_of_simulate_describes_the_defaults_as_they_are(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")

    main(["simulate", "--help"])

    page = words(capsys.readouterr().out)
    assert f"Without options: {words(describe_run(RunConfig()))}." in page
    assert "ν = 3" in page


def test_options_lists_what_each_may_be(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    main(["options"])

    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert "above 0 to 1  " in lines["federation.participation-fraction"]
    assert "elu, tanh, gelu, silu, softplus, relu" in lines["model.activation"]
    assert "see `nufed datasets`" in lines["data.source"]
    assert "0 to below 4611686018427387904" in lines["seed"]
    numbers = [key for key, (default, _) in option_descriptions().items() if isinstance(default, int | float)]
    assert all(allowed_values(key) in lines[key] for key in numbers)
    assert all(f"--{flag} " in lines[key] for flag, key in FLAGS.items())


@pytest.mark.parametrize("width", [40, 70, 80, 200])
@pytest.mark.parametrize("command", ["options", "methods", "datasets", "models", "estimators"])
def test_a_list_says_the_same_at_any_width(monkeypatch, capsys, command, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    main([command])
    in_a_pipe = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("COLUMNS", str(width))

    main([command])

    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if not line.startswith("Your own")]
    assert max(map(cell_len, table)) <= width
    said = set(re.findall(r"[^\s;]+", printed))
    assert all(set(re.findall(r"[^\s;]+", line)) <= said for line in in_a_pipe[1:])


def test_a_table_is_columns_where_they_fit_else_a_folded_last_column_else_paragraphs():
    header, rows = ("name", "values", "meaning"), [("one", "1, 2", "a b " * 12), ("two", "", "short")]

    wide, folded, narrow = (table_lines(header, rows, width=width) for width in (None, 48, 30))

    assert [line[:10] for line in wide] == ["name  valu", "one   1, 2", "two       "]
    assert folded[1].startswith("one   1, 2    a b a b")
    assert folded[2].startswith(" " * 14 + "b a b")
    assert narrow[0] == "one"
    assert narrow[1:3] == ["  values 1, 2", "  a b a b a b a b a b a b a b"]
    assert narrow[-2:] == ["two", "  short"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sim", "simulate"),
        ("simulate --method per-fedavg-", "per-fedavg-fo\nper-fedavg-hf"),
        ("simulate --set model.act", "model.activation="),
        ("experiment two-groups-d", "two-groups-digits"),
    ],
)
def test_a_shell_completes_commands_options_and_values(monkeypatch, capsys, typed, offered):
    monkeypatch.setenv("_NUFED_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"nufed {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))

    with pytest.raises(SystemExit):
        main([])

    assert capsys.readouterr().out.strip() == offered


def test_the_version_of_a_checkout_is_its_commit_and_of_a_built_package_its_stamp(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path / "checkout", capture_output=True, check=True)
        return done.stdout.decode().strip()

    package = tmp_path / "checkout" / "nufed"
    package.mkdir(parents=True)
    (tmp_path / "checkout" / "pyproject.toml").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = find_commit(package)
    (tmp_path / "checkout" / "pyproject.toml").write_text("changed")
    changed = find_commit(package)
    installed = tmp_path / "checkout" / "venv" / "nufed"
    installed.mkdir(parents=True)
    unknown = find_commit(installed)
    (installed / STAMP).write_text("0123abcd\n")

    assert git("rev-parse", "HEAD").startswith(clean)
    assert len(clean) >= 12
    assert changed == f"{clean}+changes"
    assert (unknown, find_commit(installed)) == (None, "0123abcd")


def test_what_is_built_from_a_checkout_is_stamped_with_its_commit(tmp_path):
    root = Path(__file__).parents[3]
    if (commit := find_commit(root / "nufed")) is None:
        pytest.skip("no checkout")

    runpy.run_path(str(root / "setup.py"), run_name="imported")["_stamp"](tmp_path)

    assert (tmp_path / STAMP).read_text() == f"{commit}\n"


def test_the_command_line_is_loaded_without_pytorch_and_what_else_computes():
    code = (
        "import sys, nufed.deploy.commands.cli; "
        "print(sorted({'torch', 'flwr', 'pandas', 'numpy', 'matplotlib', 'starlette'} & set(sys.modules)))"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"


def test_a_model_is_examined_without_the_compiler_of_pytorch_which_takes_a_third_of_the_start():
    code = (
        "import sys, torch; from nufed.common.models.recording import record; "
        "_, seen = record(lambda: torch.nn.functional.max_pool2d(torch.ones(1, 1, 2, 2), 2)); "
        "print(seen.kinks, 'torch._dynamo' in sys.modules)"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "{'max_pool'} False"
